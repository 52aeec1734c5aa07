"""The hot loops of the static coder, compiled by numba when this file is first imported (only `coder` does, and late).

Range asymmetric numeral systems with 32-bit states, 16-bit words and four interleaved lanes: symbol i belongs to lane
i % 4. A state stays in [2**16, 2**32), so one symbol writes or reads at most one word.
Source: J. Duda, "Asymmetric numeral systems", 2013; F. Giesen, "Interleaved entropy coders", 2014.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

LANES = 4
LOW = 1 << 16


def hot(function: Callable[..., Any]) -> Any:
    """The function compiled at its first call, and kept for the next process where a disk can be written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # numba finds no folder it may write to: compile anew in each process
        return numba.njit(function)


@numba.njit(inline="always")
def _put(x: Any, f: Any, s: Any, precision: Any, words: Any, at: Any) -> Any:
    """The state and the place after symbol (frequency f, start s); words fill the buffer from its end."""
    if x >= np.uint64(f) << np.uint64(32 - precision):
        at -= 1
        words[at] = np.uint16(x & np.uint64(0xFFFF))
        x >>= np.uint64(16)
    wide = np.uint32(x)
    q = wide // f
    return (np.uint64(q) << np.uint64(precision)) + np.uint64(wide - q * f) + np.uint64(s), at


@hot
def rans_encode(codes: Any, frequencies: Any, starts: Any, precision: int, mode: int, words: Any, states: Any) -> int:
    """Fills `words` from its end and `states`; gives the place of the first word written.

    `words` must have room for one word a symbol, counts rounded up to whole lanes (the last are padded with `mode`).
    """
    a = b = c = d = np.uint64(LOW)
    at = words.size
    count = codes.size
    full = count - count % LANES
    if full < count:
        tail = np.full(LANES, mode, np.int64)
        for i in range(full, count):
            tail[i - full] = codes[i]
        d, at = _put(d, frequencies[tail[3]], starts[tail[3]], precision, words, at)
        c, at = _put(c, frequencies[tail[2]], starts[tail[2]], precision, words, at)
        b, at = _put(b, frequencies[tail[1]], starts[tail[1]], precision, words, at)
        a, at = _put(a, frequencies[tail[0]], starts[tail[0]], precision, words, at)
    for i in range(full - LANES, -1, -LANES):
        d, at = _put(d, frequencies[codes[i + 3]], starts[codes[i + 3]], precision, words, at)
        c, at = _put(c, frequencies[codes[i + 2]], starts[codes[i + 2]], precision, words, at)
        b, at = _put(b, frequencies[codes[i + 1]], starts[codes[i + 1]], precision, words, at)
        a, at = _put(a, frequencies[codes[i]], starts[codes[i]], precision, words, at)
    states[0], states[1], states[2], states[3] = a, b, c, d
    return at


@numba.njit(inline="always")
def _get(x: Any, table: Any, slots: Any, precision: Any, words: Any, at: Any) -> Any:
    """The symbol, the state and the place after it; `words[at]` must exist whether it is needed or not."""
    slot = x & np.uint64((1 << precision) - 1)
    packed = np.uint64(table[slot])
    x = (packed >> np.uint64(16)) * (x >> np.uint64(precision)) + (packed & np.uint64(0xFFFF))
    word = np.uint64(words[at])
    if x < np.uint64(LOW):
        x = x << np.uint64(16) | word
        at += 1
    return slots[slot], x, at


@hot
def rans_decode(words: Any, used: int, states: Any, table: Any, slots: Any, precision: int, out: Any) -> bool:
    """Fills `out` (size a multiple of four); False when the words run out, are left over or do not fit.

    Shapes: words [used + LANES], table [2**precision] (frequency << 16 | slot - start), slots [2**precision] (symbols).
    A group of four reads at most four words, so `at <= used` at its begin keeps every read inside `words`.
    """
    a, b, c, d = np.uint64(states[0]), np.uint64(states[1]), np.uint64(states[2]), np.uint64(states[3])
    at = 0
    for i in range(0, out.size, LANES):
        if at > used:
            return False
        out[i], a, at = _get(a, table, slots, precision, words, at)
        out[i + 1], b, at = _get(b, table, slots, precision, words, at)
        out[i + 2], c, at = _get(c, table, slots, precision, words, at)
        out[i + 3], d, at = _get(d, table, slots, precision, words, at)
    low = np.uint64(LOW)
    return at == used and a == low and b == low and c == low and d == low
