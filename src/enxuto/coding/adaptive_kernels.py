"""The hot loops of the adaptive coder, compiled by numba when this file is first imported (late, by `adaptive` alone).

One function goes both ways, so that encoder and decoder cannot drift apart. Everything is integer arithmetic: the same
bytes on every machine.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from enxuto.functional.hot import hot

CONTEXTS = 4  # of a code
LEVELS = 26  # values a context can have: two for each power of two of an activity below 4096, and spare ones
LOW, RANGE, CODE, AT = range(4)  # places in `state`
SLACK = 64  # bytes that one code never fills: nine decisions of at most sixteen bits each take eighteen
_BITS = 16  # of a probability, an activity, a weight
ORDERS = (0, 1, 2, 3, 4, 6)  # letters before this one that the contexts of a text look at
SLOT_BITS = 15  # of the places of chances in a text, for each order; shared by chance when there are more
_CHANCE = (1 << _BITS) - 1  # what of a number is the chance; the age stands above
_QUIET = 200  # activity before anything was seen, of 65536
_COLUMN, _ROW, _LEARN = 5, 4, 15  # speeds of forgetting and learning as right shifts: best on the nets of bench
_SCATTER = 0x2F0B4C47  # any odd number below 2**31 with its bits well mixed
_WORD = 0xFFFFFFFF
_TOP = np.uint64(1 << 24)
_FULL = np.uint64(1 << 32)
_ONE, _BYTE = np.uint64(1), np.uint64(8)
_U = np.uint64


@numba.njit(inline="always")
def _code_bit(bit: Any, p: Any, coder: Any, data: Any, decoding: Any) -> Any:
    """The bit, written or read with probability p / 65536 of being 1; and the coder after it.

    A range coder with a 32-bit range: what was read (or, writing, the lower end), the range, the place. A carry runs back over
    the bytes already written. Behind its end, data is zero.
    Source: G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979.
    """
    x, size, at = coder
    bound = size * _U(p) >> _U(_BITS)
    if decoding:
        bit = 1 if x < bound else 0
    if bit:
        size = bound
    else:
        size -= bound
        x = x - bound if decoding else x + bound
    if not decoding and x >= _FULL:
        x -= _FULL
        k = at - _ONE
        while data[k] == 255:
            data[k] = 0
            k -= _ONE
        data[k] += 1
    while size < _TOP:
        if decoding:
            x = x << _BYTE | (_U(data[at]) if at < _U(data.size) else _U(0))
        else:
            data[at] = x >> _U(24)
            x = (x & _U(0xFFFFFF)) << _BYTE
        at += _ONE
        size <<= _BYTE
    return bit, (x, size, at)


@numba.njit(inline="always")
def _model_bit(bit: Any, node: Any, mix: Any, active: Any, model: Any, coder: Any, data: Any, decoding: Any) -> Any:
    """The bit, coded with the mixed opinion of all contexts, which then learn from it; and the coder after it.

    `mix`: which of the weights, and how many contexts (in the code and no size of an array, so that the loops are unrolled).

    Source: M. Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005 (logistic mixing).
    """
    chances, weights, stretch, squash, rates = model
    part, count = _U(mix[0]), mix[1]
    half = squash.size // 2
    total: Any = 0
    node = _U(node)
    for k in range(count):
        known = chances[_U(k), _U(active[k]), node]
        total += weights[part, _U(k)] * np.int64(stretch[_U(known & _CHANCE) >> _U(4)])
    total = min(max(total >> _BITS, -half), half - 1)
    p = np.int64(squash[_U(total + half)])
    bit, coder = _code_bit(bit, p, coder, data, decoding)
    wanted = bit << _BITS
    for k in range(count):
        known = np.int64(chances[_U(k), _U(active[k]), node])
        chance, age = known & _CHANCE, known >> _BITS
        weights[part, _U(k)] += (np.int64(stretch[_U(chance >> 4)]) * (wanted - p)) >> _LEARN
        chance += ((wanted - chance) * rates[_U(age)]) >> _BITS
        chances[_U(k), _U(active[k]), node] = min(age + 1, rates.size - 1) << _BITS | min(max(chance, 16), 65520)
    return bit, coder


@numba.njit(inline="always")
def _keep(coder: Any, state: Any, decoding: Any) -> None:
    state[CODE if decoding else LOW], state[RANGE], state[AT] = coder


@hot
def walk(codes: Any, kind: tuple[int, int, int], data: Any, state: Any, levels: Any, model: Any, decoding: bool) -> bool:
    """Writes `codes` into `data`, or fills them from it; False when the data is too small, or holds no such codes.

    `kind`: how many columns there are, the most frequent code (`mode`), and how many different codes.

    Each code is: is it `mode`? If not, is it below? Then its distance less one, highest bit first, each a node of a binary
    tree. Whether it is the mode depends on the codes just before and above, and on how far from `mode` the codes lately
    were in this column, in this row and in the columns beside it; the distance on the row and on the last distance: pruned
    rows and columns, kernels and signs come in runs.
    """
    stride, mode, symbols = kind
    columns, above = np.full(stride, _QUIET, np.uint16), np.zeros(stride, np.uint8)
    row, column, end, last, before = np.int64(_QUIET), _U(0), _U(stride), np.int64(0), np.int64(0)
    bits = model[1].shape[0] - 2
    limit = _U(data.size + SLACK if decoding else data.size - SLACK)
    coder = _U(state[CODE if decoding else LOW]), _U(state[RANGE]), _U(state[AT])
    for i in range(codes.size):
        if coder[2] > limit:
            return False
        here = np.int64(columns[column])
        beside = np.int64(columns[column - _ONE] if column > 0 else here)
        beside += np.int64(columns[column + _ONE] if column + _ONE < end else here)
        near, level = before + 4 * np.int64(above[column]), np.int64(levels[_U(here >> 4)])
        around: Any = min(here + row + (beside >> 1) >> 5, 4095)
        active = np.int64(0), near, level, np.int64(levels[_U(around)])
        distance = np.int64(codes[i]) - mode
        activity = np.int64(0)
        other, coder = _model_bit(1 if distance != 0 else 0, 0, (0, CONTEXTS), active, model, coder, data, decoding)
        if other:
            active = np.int64(0), level, np.int64(levels[_U(row >> 4)]), last
            sign, coder = _model_bit(1 if distance < 0 else 0, 1 << bits, (1, CONTEXTS), active, model, coder, data, decoding)
            active = np.int64(0), np.int64(sign), active[2], last >> 1
            size, node = abs(distance) - 1, 1
            for depth in range(bits):
                bit = size >> (bits - 1 - depth) & 1
                bit, coder = _model_bit(bit, node, (depth + 2, CONTEXTS), active, model, coder, data, decoding)
                node = node << 1 | bit
            size = node - (1 << bits)
            distance = -1 - size if sign else size + 1
            last = 2 * (size * (LEVELS // 2) >> bits) + sign
            activity = 5000 + (60000 * (size + 1) >> bits)
        else:
            distance = np.int64(0)
        if not 0 <= mode + distance < symbols:
            return False
        codes[i] = mode + distance
        above[column] = distance != 0
        before = (before << 1 | (1 if distance != 0 else 0)) & 3
        columns[column] = here + ((activity - here) >> _COLUMN)
        row += (activity - row) >> _ROW
        column += _ONE
        if column == end:
            column = _U(0)
    _keep(coder, state, decoding)
    return True


@hot
def spell(letters: Any, start: int, data: Any, state: Any, model: Any, decoding: bool) -> bool:
    """Writes the letters from `start` on into `data`, or fills them from it; False when the data is too small.

    Each order keeps the chances of all its contexts in one table, found by a hash of the letters before and the node. How
    many orders have been here before says which weights mix them: the longer the context that is known, the surer.
    """
    chances = model[0]
    active, mixed = np.zeros(len(ORDERS), np.int64), np.zeros(len(ORDERS), np.int64)
    limit = _U(data.size + SLACK if decoding else data.size - SLACK)
    coder = _U(state[CODE if decoding else LOW]), _U(state[RANGE]), _U(state[AT])
    for i in range(start, letters.size):
        if coder[2] > limit:
            return False
        for k in range(len(ORDERS)):
            mixed[k] = 0
            for j in range(max(0, i - ORDERS[k]), i):
                mixed[k] = ((mixed[k] + letters[j] + 1) * _SCATTER) & _WORD
        node = 1
        for depth in range(8):
            known = 0
            for k in range(len(ORDERS)):
                place = ((mixed[k] ^ node) * _SCATTER) & _WORD
                active[k] = ((place ^ place >> 15) * _SCATTER & _WORD) >> (32 - SLOT_BITS)
                known += chances[k, active[k], 0] > _CHANCE
            bit = letters[i] >> (7 - depth) & 1
            bit, coder = _model_bit(bit, 0, (known, len(ORDERS)), active, model, coder, data, decoding)
            node = node << 1 | bit
        letters[i] = node - 256
    _keep(coder, state, decoding)
    return True
