"""Whole streams of codes in one compiled call: *constant*, *raw*, *static*, and *runs*, which are two of these.

A call from Python costs as much as thousands of codes, so that nothing but the slow methods is put together there.
Bytes are read only below `end`, and written only into `out`, whose size the callers know; places are in bytes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from enxuto.coding.kernels import LANES, join_runs, rans_decode, rans_encode, split_runs
from enxuto.coding.model_kernels import PRECISIONS, choose_model, message_bits, read_table, table_room, write_table
from enxuto.coding.stream import CONSTANT, RAW, RUNS, STATIC
from enxuto.functional.hot import hot

_SMALL_CODES = 1 << 12
NOISE = 0.995  # of the raw bytes: what does not get below has no pattern worth a search
LONGEST = 255  # a run of so many ends without another code behind it; longer ones are several
FINEST, _COARSEST = PRECISIONS[-1], PRECISIONS[0]
_MANY = 1 << 16  # codes for which a finer table pays
_HANDY, _HANDY_CODES, _HANDY_SYMBOLS = 10, 1 << 14, 16  # a precision that is laid out in no time: for how few codes and symbols
_STATES = 4 * LANES  # bytes
_OVERHEAD = 3 * LANES  # bytes of the states: half of them never carries information, a quarter not on average
_FEW, _RARE = 0.25, 0.02  # other codes, below which runs are read faster; and may even be smaller
_HARDLY = 1.05  # of the bytes of the simple stream, which runs may take where they are read faster
_U = np.uint64


@numba.njit(inline="always")
def _copy(source: Any, target: Any) -> None:
    """Copies all of the source to the begin of the target; as a loop from 0, which becomes vector instructions."""
    for i in range(source.size):
        target[i] = source[i]


@hot
def histogram(codes: Any, counts: Any) -> None:
    """Adds how often each symbol occurs to `counts` [symbols]; in four rows, as one would wait for itself."""
    rows = np.zeros((4, counts.size), np.int64)
    full = codes.size - codes.size % 4
    for i in range(0, full, 4):
        rows[0, codes[i]] += 1
        rows[1, codes[i + 1]] += 1
        rows[2, codes[i + 2]] += 1
        rows[3, codes[i + 3]] += 1
    for i in range(full, codes.size):
        rows[0, codes[i]] += 1
    for symbol in range(counts.size):
        counts[symbol] += rows[0, symbol] + rows[1, symbol] + rows[2, symbol] + rows[3, symbol]


@hot
def entropy(counts: Any) -> float:
    """Bits at the order-0 entropy of these counts."""
    total, bits = counts.sum(), 0.0
    for count in counts:
        if count > 0:
            bits += count * np.log2(total / count)
    return bits


@hot
def choose(counts: Any, bits: int, finest: int, frequencies: Any, table: Any) -> Any:
    """The simple method that takes the fewest bytes, and nearly how many; of *static* the precision and the bytes of its table.

    `finest` is the highest precision of few codes.
    Shapes: counts, frequencies [symbols], table [`table_room(symbols)`] zeros; the last two are filled for *static*.
    """
    total, most = counts.sum(), counts.max()
    if most == total:
        return CONSTANT, 1.0 + _bytes_of(counts.argmax()), 0, 0
    raw = 1.0 + (total * bits + 7) // 8
    if total > _SMALL_CODES and entropy(counts) >= NOISE * total * bits:
        return RAW, raw, 0, 0
    first, last = (FINEST, FINEST) if total >= _MANY else (_COARSEST, finest)
    precision = choose_model(counts, first, last, frequencies)
    if precision == 0:
        return RAW, raw, 0, 0
    length = write_table(frequencies, precision, bits, table)
    size = 1 + message_bits(counts, frequencies, precision) / 8 + length + _OVERHEAD
    return (STATIC, size, precision, length) if size < raw else (RAW, raw, 0, 0)


@hot
def write_simple(codes: Any, symbols: int, out: Any, at: int) -> int:
    """Writes the smallest simple stream, at most a byte longer than raw; the place behind it. No codes are no bytes."""
    if codes.size == 0:
        return at
    counts = np.zeros(symbols, np.int64)
    histogram(codes, counts)
    frequencies, table = np.empty(symbols, np.int64), np.zeros(table_room(symbols), np.uint8)
    bits = _width(symbols)
    return _write_chosen(codes, bits, choose(counts, bits, FINEST, frequencies, table), frequencies, table, out, at)


@hot
def _write_chosen(codes: Any, bits: int, chosen: Any, frequencies: Any, table: Any, out: Any, at: int) -> int:
    """Writes what `choose` chose; the place behind it."""
    method, size, precision, length = chosen
    out[at] = method
    if method == CONSTANT:
        value = np.int64(codes[0])
        for place in range(_bytes_of(value)):
            at += 1
            out[at] = value >> 8 * place & 255
        return at + 1
    raw = 1 + (codes.size * bits + 7) // 8
    if method == STATIC:
        states, words, first = np.empty(LANES, np.uint32), np.empty(0, np.uint16), -1
        padded, room = _padded(codes, frequencies), int(size / 2 * 1.001) + 64
        while first < 0:  # memory that is never touched still takes time to come by: ask for what should suffice
            words = np.empty(room + LANES + 1, np.uint16)
            first = rans_encode(padded, frequencies, precision, words, states)
            room = padded.size
        whole = 1 + length + _STATES + 2 * (words.size - first)
        if whole <= raw:  # the size was that of an average
            _copy(table[:length], out[at + 1 :])
            place = at + 1 + length
            for lane in range(LANES):
                for byte in range(4):
                    out[place + 4 * lane + byte] = states[lane] >> 8 * byte & 255
            place += _STATES
            _copy(words[first:].view(np.uint8), out[place:])
            return at + whole
        out[at] = RAW
    pack_bits(codes, bits, out, at + 1)
    return at + raw


@hot
def write_runs(codes: Any, mode: int, symbols: int, out: Any) -> int:
    """Writes the runs of `mode` and the other codes; the bytes that they take."""
    others = 0
    for i in range(codes.size):
        others += codes[i] != mode
    rest = np.empty(others, codes.dtype)
    lengths = np.empty(others + 1 + codes.size // LONGEST, np.uint8)
    lengths = lengths[: split_runs(codes, mode, lengths, rest)]
    part = np.empty(1 + lengths.size, np.uint8)
    size = write_simple(lengths, 256, part, 0)
    out[0] = RUNS
    at = _write_varint(lengths.size, out, _write_varint(mode, out, 1))
    at = _write_varint(size, out, at)
    _copy(part[:size], out[at:])
    return write_simple(rest, symbols, out, at + size)


@hot
def write_fast(codes: Any, symbols: int, out: Any) -> int:
    """Writes nearly the smallest simple stream, or runs where they are read faster and hardly larger; the bytes that it takes."""
    if codes.size == 0:
        return 0
    counts = np.zeros(symbols, np.int64)
    histogram(codes, counts)
    frequencies, table = np.empty(symbols, np.int64), np.zeros(table_room(symbols), np.uint8)
    bits, mode = _width(symbols), counts.argmax()
    handy = codes.size < _HANDY_CODES and (counts > 0).sum() <= _HANDY_SYMBOLS
    chosen = choose(counts, bits, _HANDY if handy else FINEST, frequencies, table)
    others = codes.size - counts[mode]
    may_pay = (_HARDLY - 1) * chosen[1] > 2 * _STATES  # what a second stream and its table cost at least
    if 0 < others < (_FEW if may_pay else _RARE) * codes.size:
        whole = write_runs(codes, mode, symbols, out)
        if whole <= _HARDLY * chosen[1]:
            return whole
    return _write_chosen(codes, bits, chosen, frequencies, table, out, 0)


@hot
def read_simple(data: Any, at: int, end: int, symbols: int, out: Any) -> bool:
    """Fills `out` from the simple stream between two places; False where it is none, or not one of so many codes."""
    if out.size == 0 or at >= end:
        return out.size == 0 and at == end
    method, bits, at = data[at], _width(symbols), at + 1
    if method == CONSTANT:
        value: Any = 0
        for place in range(min(end - at, 3)):
            value |= np.int64(data[at + place]) << 8 * place
        out[:] = value
        return value < symbols and end - at == _bytes_of(value)
    if symbols == 1:
        return False
    if method == RAW:
        return unpack_bits(data, at, end, bits, out) and (symbols == 1 << bits or out.max() < symbols)
    return method == STATIC and _read_static(data, at, end, symbols, out)


@hot
def _read_static(data: Any, at: int, end: int, symbols: int, out: Any) -> bool:
    frequencies = np.zeros(symbols, np.int64)
    precision, at = read_table(data, at, end, _width(symbols), frequencies)
    if at < 0 or end - at < _STATES or (end - at) % 2:
        return False
    states = np.zeros(LANES, np.uint64)
    for lane in range(LANES):
        for byte in range(4):
            states[lane] |= _U(data[at + 4 * lane + byte]) << _U(8 * byte)
    at += _STATES
    used = (end - at) // 2
    words = np.empty(used + LANES, np.uint16)
    words[used:] = 0
    _copy(data[at:end], words.view(np.uint8))  # little endian, as the machines that numba knows
    if out.size % LANES == 0:  # called in two places, the loop stays a function of its own: inlined here it is a third slower
        return rans_decode(words, used, states, frequencies, precision, out)
    padded = np.empty(out.size + LANES - out.size % LANES, out.dtype)
    whole = rans_decode(words, used, states, frequencies, precision, padded)
    _copy(padded[: out.size], out)
    return whole


@hot
def read_runs(data: Any, at: int, symbols: int, out: Any) -> bool:
    """Fills `out` from the runs that stand behind a place; False where they are damaged."""
    mode, at = _read_varint(data, at)
    runs, at = _read_varint(data, at)
    size, at = _read_varint(data, at)
    if at < 0 or mode >= symbols or not 1 <= runs <= out.size + 1 or size > data.size - at:
        return False
    lengths = np.empty(runs, np.uint8)
    if not read_simple(data, at, at + size, 256, lengths):
        return False
    others = -1
    for length in lengths:
        others += length != LONGEST
    if others < 0:
        return False
    rest = np.empty(others, out.dtype)
    out[:] = mode
    return read_simple(data, at + size, data.size, symbols, rest) and join_runs(lengths, rest, out)


@hot
def pack_bits(codes: Any, bits: int, out: Any, at: int) -> None:
    """Writes the codes, so many bits each, the first into the lowest bits of the first byte; the last byte ends in zeros."""
    if bits == 8:
        _copy(codes, out[at:])
        return
    word, filled = _U(0), 0
    for i in range(codes.size):
        word |= _U(codes[i]) << _U(filled)
        filled += bits
        while filled >= 8:
            out[at] = word & _U(255)
            word >>= _U(8)
            filled -= 8
            at += 1
    if filled:
        out[at] = word


@hot
def unpack_bits(data: Any, at: int, end: int, bits: int, out: Any) -> bool:
    """Fills `out` with what `pack_bits` wrote; False where the bytes are not as many, or do not end in zeros."""
    if end - at != (out.size * bits + 7) // 8:
        return False
    if bits == 8:
        _copy(data[at:end], out)
        return True
    word, filled, mask, wide = _U(0), 0, _U((1 << bits) - 1), _U(bits)
    for i in range(out.size):
        while filled < bits:
            word |= _U(data[at]) << _U(filled)
            filled += 8
            at += 1
        out[i] = word & mask
        word >>= wide
        filled -= bits
    return word == _U(0)


@numba.njit(inline="always")
def _padded(codes: Any, frequencies: Any) -> Any:
    """The codes, filled up with the most frequent symbol to a multiple of eight."""
    if codes.size % LANES == 0:
        return codes
    padded = np.empty(codes.size + LANES - codes.size % LANES, codes.dtype)
    _copy(codes, padded)
    padded[codes.size :] = frequencies.argmax()
    return padded


@hot
def _width(symbols: int) -> int:
    """The bits that one of so many different codes takes when packed."""
    bits = 0
    while symbols - 1 >> bits:
        bits += 1
    return bits


@hot
def _bytes_of(value: int) -> int:
    """The bytes that a value takes, 0 for 0."""
    return (value > 0) + (value > 255)


@hot
def _write_varint(value: int, out: Any, at: int) -> int:
    while value >= 0x80:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@hot
def _read_varint(data: Any, at: int) -> tuple[int, int]:
    """The number at a place and the place behind it; -1 where none stands there, or it is not in its shortest form."""
    value: Any = 0
    for index in range(9):
        if at < 0 or at >= data.size:
            break
        byte = np.int64(data[at])
        value |= (byte & 0x7F) << 7 * index
        at += 1
        if byte < 0x80:
            return value, at if byte or not index else -1
    return 0, -1
