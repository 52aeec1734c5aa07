"""The hot loops of the static coder, compiled by numba when this file is first imported (late, by those who need them).

Range asymmetric numeral systems with 32-bit states, 16-bit words and eight interleaved lanes: symbol i belongs to lane
i % 8. A state stays in [2**16, 2**32), so one symbol writes or reads at most one word. No step branches on the data: a
mispredicted branch costs more than the symbol. Places are unsigned: for a signed one numba asks whether it counts from the end.
Source: J. Duda, "Asymmetric numeral systems", 2013; F. Giesen, "Interleaved entropy coders", 2014.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from enxuto.functional.hot import hot

LANES = 8
LOW = 1 << 16
_U = np.uint64


@numba.njit(inline="always")
def _put(x: Any, model: Any, inverse: Any, words: Any, at: Any) -> Any:
    """The state and the place after a symbol; words fill the buffer from its end.

    The quotient of x and the frequency f is taken in double precision and exact: `inverse` is 1 / f and a little more, so
    that a multiple of f never falls below itself, and x / f < 2**32 / f lies at least 1 / f below the next one.
    """
    full = x >= model >> _U(32)
    words[at - _U(1)] = np.uint16(x)
    at -= _U(full)
    x = x >> _U(16) if full else x
    q = _U(np.int64(np.float64(np.int64(x)) * inverse))
    return x + (model & _U(0xFFFF)) + q * (model >> _U(16) & _U(0xFFFF)), at


@hot
def rans_encode(codes: Any, frequencies: Any, precision: int, words: Any, states: Any) -> Any:
    """Fills `words` from its end and `states`; gives the place of the first word written, -1 where they do not suffice.

    Shapes: codes [a multiple of eight], frequencies [symbols], words [at most one a code, and nine].
    """
    model, inverse, start = np.empty(frequencies.size, np.uint64), np.empty(frequencies.size, np.float64), 0
    for s in range(frequencies.size):
        frequency = frequencies[s]
        model[s] = frequency << 32 - precision << 32 | (1 << precision) - frequency << 16 | start
        inverse[s] = (1.0 + 2.0**-40) / max(frequency, 1)
        start += frequency
    a = b = c = d = e = f = g = h = _U(LOW)
    at, room = _U(words.size), _U(LANES)
    for group in range(codes.size // LANES - 1, -1, -1):
        i = _U(group) << _U(3)
        if at <= room:
            return -1
        s = codes[i + _U(7)]
        h, at = _put(h, model[s], inverse[s], words, at)
        s = codes[i + _U(6)]
        g, at = _put(g, model[s], inverse[s], words, at)
        s = codes[i + _U(5)]
        f, at = _put(f, model[s], inverse[s], words, at)
        s = codes[i + _U(4)]
        e, at = _put(e, model[s], inverse[s], words, at)
        s = codes[i + _U(3)]
        d, at = _put(d, model[s], inverse[s], words, at)
        s = codes[i + _U(2)]
        c, at = _put(c, model[s], inverse[s], words, at)
        s = codes[i + _U(1)]
        b, at = _put(b, model[s], inverse[s], words, at)
        s = codes[i]
        a, at = _put(a, model[s], inverse[s], words, at)
    states[0], states[1], states[2], states[3] = a, b, c, d
    states[4], states[5], states[6], states[7] = e, f, g, h
    return np.int64(at)


@numba.njit(inline="always")
def _get(x: Any, table: Any, precision: Any, last: Any, words: Any, at: Any) -> Any:
    """The symbol, the state and the place after it; `words[at]` must exist whether it is needed or not."""
    known = table[x & last]
    x = (known >> _U(32)) * (x >> precision) + (known >> _U(16) & _U(0xFFFF))
    filled, empty = x << _U(16) | _U(words[at]), x < _U(LOW)
    return known & _U(0xFFFF), filled if empty else x, at + _U(empty)


@hot
def rans_decode(words: Any, used: int, states: Any, frequencies: Any, precision: int, out: Any) -> bool:
    """Fills `out`; False when the words run out, are left over or do not fit.

    Shapes: words [used + 8], frequencies [symbols], out [a multiple of eight]. A group of eight reads at most eight words,
    so `at <= used` at its begin keeps every read inside `words`.
    """
    table, start = np.empty(1 << precision, np.uint64), 0  # frequency, place in its range, symbol
    for s in range(frequencies.size):
        for place in range(frequencies[s]):
            table[start + place] = frequencies[s] << 32 | place << 16 | s
        start += frequencies[s]
    p, last, low, end = _U(precision), _U((1 << precision) - 1), _U(LOW), _U(used)
    a, b, c, d = _U(states[0]), _U(states[1]), _U(states[2]), _U(states[3])
    e, f, g, h = _U(states[4]), _U(states[5]), _U(states[6]), _U(states[7])
    at = _U(0)
    for group in range(out.size // LANES):
        i = _U(group) << _U(3)
        if at > end:
            return False
        out[i], a, at = _get(a, table, p, last, words, at)
        out[i + _U(1)], b, at = _get(b, table, p, last, words, at)
        out[i + _U(2)], c, at = _get(c, table, p, last, words, at)
        out[i + _U(3)], d, at = _get(d, table, p, last, words, at)
        out[i + _U(4)], e, at = _get(e, table, p, last, words, at)
        out[i + _U(5)], f, at = _get(f, table, p, last, words, at)
        out[i + _U(6)], g, at = _get(g, table, p, last, words, at)
        out[i + _U(7)], h, at = _get(h, table, p, last, words, at)
    whole = a == low and b == low and c == low and d == low
    return at == end and whole and e == low and f == low and g == low and h == low


@hot
def split_planes(values: Any, rotate: int, planes: Any) -> None:
    """The bytes of `values` (unsigned, rotated left by `rotate` bits) as planes, lowest first. Shapes: planes [bytes, count].

    One plane after the other, because only then the loops become vector instructions.
    """
    bits = 8 * planes.shape[0]
    left, right = _U(rotate), _U((bits - rotate) % bits)
    for plane in range(planes.shape[0]):
        row, shift = planes[plane], _U(8 * plane)
        for i in range(values.size):
            value = _U(values[i])
            row[i] = np.uint8((value << left | value >> right) >> shift)


@hot
def passages(values: Any, window: int, kept: int) -> Any:
    """A number for each passage of `window` values that says it is one of the `kept`-th, those of zeros alone left out.

    The number is a hash from which a value has been shifted out when the window has passed it, so that a passage has the same one
    wherever it stands.

    Shapes: values [count], unsigned integers -> uint64 [found], in their order.
    Source: A. Muthitacharoen et al., "A low-bandwidth network file system", 2001, for choosing by content.
    """
    found = np.empty(values.size, np.uint64)
    shift, count, h = _U(64 // window), 0, _U(0)
    for i in range(values.size):
        v = _U(values[i]) * _U(0x9E3779B97F4A7C15)
        h = (h << shift) + (v ^ v >> _U(32))
        if h and (h * _U(0xD6E8FEB86659FD93)) >> _U(40) < _U((1 << 24) // kept):
            found[count] = h
            count += 1
    return found[:count]


@hot
def add_plane(plane: Any, shift: int, values: Any) -> None:
    """Puts the bytes of a plane into `values` (zeros there), so many bits from the lowest."""
    left = _U(shift)
    for i in range(values.size):
        values[i] |= _U(plane[i]) << left


@hot
def rotate_right(values: Any, rotate: int, bits: int) -> None:
    """Turns each of the values, so many bits wide."""
    left, right = _U(bits - rotate), _U(rotate)
    for i in range(values.size):
        value = _U(values[i])
        values[i] = value >> right | value << left


@hot
def split_runs(codes: Any, mode: int, lengths: Any, others: Any) -> int:
    """The runs of `mode` before each other code into `lengths`, those codes into `others`; how many runs there are.

    A run that reaches 255 ends without a code behind it. Shapes: codes [count], others [codes that are not `mode`],
    lengths [as many, one more, and one for every 255 codes].
    """
    last, runs, found = -1, 0, 0
    for i in range(codes.size + 1):
        if i == codes.size or codes[i] != mode:
            gap = i - last - 1
            while gap >= 255:
                lengths[runs] = 255
                runs += 1
                gap -= 255
            lengths[runs] = gap
            runs += 1
            if i < codes.size:
                others[found] = codes[i]
                found += 1
            last = i
    return runs


@hot
def join_runs(lengths: Any, others: Any, codes: Any) -> bool:
    """Puts the other codes behind their runs in `codes` (the mode before); False where the runs do not fill it exactly."""
    at = found = _U(0)
    one, count, rest = _U(1), _U(codes.size), _U(others.size)
    for i in range(lengths.size - 1):
        at += _U(lengths[i])
        if lengths[i] < 255:
            if at >= count or found == rest:
                return False
            codes[at] = others[found]
            found += one
            at += one
    last = lengths[lengths.size - 1]
    return last < 255 and at + _U(last) == count and found == rest
