"""The loops over a table of frequencies: fitted to counts, priced, written and read. Compiled at first use, like `kernels`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from enxuto.functional.hot import hot

PRECISIONS = (8, 10, 12, 14)  # log2 of the sums that are tried; finer fits better and makes a larger table
_FIELD_BITS = 4  # of the precision and of the Golomb order in a table
_LONGEST = 64  # bits of a frequency and of the run of zeros behind it, at most


@hot
def choose_model(counts: Any, first: int, last: int, frequencies: Any) -> int:
    """The precision, every other one from `first` to `last`, at which symbols and table take fewest bits; its frequencies.

    0 where none holds all symbols that occur. Shapes: counts, frequencies [symbols].
    """
    used = 0
    for count in counts:
        used += count > 0
    tried = np.empty_like(frequencies)
    best, fewest = 0, np.inf
    for precision in range(first, last + 1, 2):
        if used <= 1 << precision:
            fit_model(counts, precision, tried)
            size = message_bits(counts, tried, precision) + table_bits(tried, precision)[1]
            if size < fewest:
                best, fewest = precision, size
                frequencies[:] = tried
    return best


@hot
def fit_model(counts: Any, precision: int, frequencies: Any) -> None:
    """Frequencies that sum to `2**precision`: the shares rounded down, at least 1 for what occurs, then settled."""
    total, population, shift = 1 << precision, counts.sum(), 0
    while population >> shift >= 1 << 63 - precision:  # products stay below 2**63
        shift += 1
    places = np.flatnonzero(counts)
    occurring, shares = np.empty(places.size, np.int64), np.empty(places.size, np.int64)
    for i in range(places.size):
        occurring[i] = max(1, counts[places[i]] >> shift)
    population = occurring.sum()
    for i in range(places.size):
        shares[i] = max(1, occurring[i] * total // population)
    settle_sum(occurring, shares, total)
    frequencies[:] = 0
    frequencies[places] = shares


@hot
def message_bits(counts: Any, frequencies: Any, precision: int) -> float:
    """The bits of symbols with these counts, without table and flush."""
    bits = 0.0
    for i in range(counts.size):
        if counts[i] > 0:
            bits += counts[i] * (precision - np.log2(frequencies[i]))
    return bits


@hot
def table_bits(frequencies: Any, precision: int) -> tuple[int, int]:
    """The Golomb order that makes the table shortest, and its bits but for what runs of zeros save.

    A value v takes 2 * length((v >> order) + 1) - 1 + order bits, and the length is that of v + 2**order less the order.
    """
    bits = np.zeros(precision, np.int64)
    mode, zero = frequencies.argmax(), False
    for i in range(frequencies.size):
        value = frequencies[i]
        if i == mode or (value == 0 and zero):
            continue  # the mode follows from the sum, further zeros from the run
        zero |= value == 0
        length = 0
        while value >> length:
            length += 1
        for order in range(precision):
            longer = length + (value + (1 << order) >> length) if order < length else order + 1
            bits[order] += 2 * longer - order - 1
    order = int(bits.argmin())
    return order, bits[order]


@hot
def settle_sum(counts: Any, frequencies: Any, total: int) -> None:
    """Adds to (or takes from) the frequencies, one by one where it saves (or costs) most, until they sum to `total`.

    A unit more or less changes the bits by about the slope count / frequency at its middle: a plain division, which unlike a
    logarithm is the same on every machine, and so are the bytes.
    """
    missing = total - frequencies.sum()
    step = 1 if missing > 0 else -1
    prices, heap = np.full(counts.size, np.inf), np.arange(counts.size)
    for i in range(counts.size):
        if frequencies[i] + step > 0:
            prices[i] = -step * counts[i] / (2 * frequencies[i] + step)
    for root in range(counts.size // 2 - 1, -1, -1):
        _sink(heap, prices, root)
    for _ in range(abs(missing)):
        i = heap[0]
        frequencies[i] += step
        prices[i] = -step * counts[i] / (2 * frequencies[i] + step) if frequencies[i] + step > 0 else np.inf
        _sink(heap, prices, 0)


@hot
def _sink(heap: Any, prices: Any, root: int) -> None:
    """Moves a place down the heap until nothing below it is cheaper, or as cheap and earlier."""
    while 2 * root + 1 < heap.size:
        child = 2 * root + 1
        if child + 1 < heap.size and _before(heap[child + 1], heap[child], prices):
            child += 1
        if not _before(heap[child], heap[root], prices):
            return
        heap[root], heap[child] = heap[child], heap[root]
        root = child


@numba.njit(inline="always")
def _before(a: Any, b: Any, prices: Any) -> Any:
    return prices[a] < prices[b] or (prices[a] == prices[b] and a < b)


@numba.njit(inline="always")
def _write_bits(value: Any, bits: Any, out: Any, at: Any) -> Any:
    for place in range(bits - 1, -1, -1):
        out[at >> 3] |= (value >> place & 1) << 7 - (at & 7)
        at += 1
    return at


@numba.njit(inline="always")
def _write_golomb(value: Any, order: Any, out: Any, at: Any) -> Any:
    head, bits = (value >> order) + 1, 0
    while head >> bits > 1:
        bits += 1
    at = _write_bits(head, bits + 1, out, at + bits)  # behind as many zeros
    return _write_bits(value, order, out, at)


@hot
def table_room(symbols: int) -> int:
    """The bytes of a table, at most."""
    return (2 * _FIELD_BITS + 32 + _LONGEST * symbols) // 8


@hot
def write_table(frequencies: Any, precision: int, width: int, out: Any) -> int:
    """Writes a table into `out` (zeros before); its bytes.

    Bits, highest first: precision, order and mode, then exponential Golomb codes of the other frequencies, of the order that
    is shortest, and behind each 0 how many zeros follow, so that rare and absent symbols cost little.
    """
    order, mode = table_bits(frequencies, precision)[0], frequencies.argmax()
    at = _write_bits(precision, _FIELD_BITS, out, 0)
    at = _write_bits(order, _FIELD_BITS, out, at)
    at = _write_bits(mode, width, out, at)
    zeros = -1  # that stand behind a zero, -1 where none stands
    for i in range(frequencies.size):
        if i == mode:
            continue
        value = frequencies[i]
        if zeros >= 0 and value == 0:
            zeros += 1
            continue
        if zeros >= 0:
            at = _write_golomb(zeros, 0, out, at)
        at = _write_golomb(value, order, out, at)
        zeros = 0 if value == 0 else -1
    if zeros >= 0:
        at = _write_golomb(zeros, 0, out, at)
    return (at + 7) // 8


@numba.njit(inline="always")
def _bit(data: Any, at: Any) -> Any:
    return np.int64(data[np.uint64(at >> 3)]) >> 7 - (at & 7) & 1


@numba.njit(inline="always")
def _read_bits(data: Any, number: Any, at: Any) -> Any:
    value = 0
    for place in range(at, at + number):
        value = value << 1 | _bit(data, place)
    return value


@hot
def read_table(data: Any, at: int, end: int, width: int, frequencies: Any) -> tuple[int, int]:
    """The precision of a table that stands at byte `at`, and the byte behind it; its frequencies (zeros before).

    -1 for the byte where the table does not end before `end`, contradicts itself, or gives the mode nothing.
    """
    start = 8 * at + 2 * _FIELD_BITS + width
    if 8 * end < start:
        return 0, -1
    precision, order = _read_bits(data, _FIELD_BITS, 8 * at), _read_bits(data, _FIELD_BITS, 8 * at + _FIELD_BITS)
    mode, total = _read_bits(data, width, 8 * at + 2 * _FIELD_BITS), 1 << precision
    if mode >= frequencies.size or precision < PRECISIONS[0] or precision > PRECISIONS[-1] or precision % 2:
        return 0, -1
    last = frequencies.size - 1
    place = _read_golomb(data, start, 8 * end, order, total, frequencies[:last])
    left = total - frequencies[:last].sum()
    if place < 0 or left <= 0 or _read_bits(data, -place % 8, place):
        return 0, -1
    for i in range(last, mode, -1):
        frequencies[i] = frequencies[i - 1]
    frequencies[mode] = left
    return precision, (place + 7) // 8


@hot
def _read_golomb(data: Any, at: int, end: int, order: int, limit: int, values: Any) -> int:
    """The values, zeros before, and the bit behind them; -1 where the bits do not fit or the values reach `limit`."""
    i = total = 0
    run = False
    while i < values.size or run:
        zeros = 0
        while at < end and _bit(data, at) == 0:
            zeros += 1
            at += 1
        own = 0 if run else order
        if zeros > 20 or at + zeros + 1 + own > end:
            return -1
        value = _read_bits(data, zeros + 1, at) - 1
        at += zeros + 1
        value = value << own | _read_bits(data, own, at)
        at += own
        if run:
            i += value
            run = False
        else:
            values[i] = value
            total += value
            i += 1
            run = value == 0
        if total >= limit or i > values.size:
            return -1
    return at
