"""The hot loops of the adaptive coder, compiled by numba when this file is first imported (late, by `adaptive` alone).

One function goes both ways, so that encoder and decoder cannot drift apart. Everything is integer arithmetic: the same
bytes on every machine.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from enxuto.coding.kernels import hot

CONTEXTS = 4  # of a code
LEVELS = 26  # values a context can have: two for each power of two of an activity below 4096, and spare ones
LOW, RANGE, CODE, AT = range(4)  # places in `state`
SLACK = 64  # bytes that one code never fills: nine decisions of at most twelve bits each take fourteen
_BITS = 16  # of a probability, an activity, a weight
ORDERS = (0, 1, 2, 3, 4, 6)  # letters before this one that the contexts of a text look at
SLOT_BITS = 15  # of the places of chances in a text, for each order; shared by chance when there are more
_QUIET = 200  # activity before anything was seen, of 65536
_COLUMN, _ROW, _LEARN = 5, 4, 15  # speeds of forgetting and learning as right shifts: best on the nets of bench
_SCATTER = 0x2F0B4C47  # any odd number below 2**31 with its bits well mixed
_WORD = 0xFFFFFFFF
_TOP = 1 << 24
_FULL = 1 << 32


@numba.njit(inline="always")
def _code_bit(bit: Any, p: Any, state: Any, data: Any, decoding: Any) -> Any:
    """The bit, written or read with probability p / 65536 of being 1.

    A range coder with a 32-bit range; a carry runs back over the bytes already written. Behind its end, data is zero.
    Source: G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979.
    """
    bound = (state[RANGE] * p) >> _BITS
    if decoding:
        bit = 1 if state[CODE] < bound else 0
    if bit:
        state[RANGE] = bound
    else:
        state[RANGE] -= bound
        state[CODE] -= bound
        state[LOW] += bound
    if not decoding and state[LOW] >= _FULL:
        state[LOW] -= _FULL
        k = state[AT] - 1
        while data[k] == 255:
            data[k] = 0
            k -= 1
        data[k] += 1
    while state[RANGE] < _TOP:
        at = state[AT]
        if decoding:
            state[CODE] = state[CODE] << 8 | (np.int64(data[at]) if at < data.size else 0)
        else:
            data[at] = state[LOW] >> 24
            state[LOW] = (state[LOW] & 0xFFFFFF) << 8
        state[AT] = at + 1
        state[RANGE] <<= 8
    return bit


@numba.njit(inline="always")
def _model_bit(bit: Any, node: Any, mix: Any, active: Any, model: Any, state: Any, data: Any, decoding: Any) -> Any:
    """The bit, coded with the mixed opinion of all contexts, which then learn from it.

    `mix`: which of the weights, and how many contexts (in the code and no size of an array, so that the loops are unrolled).

    Source: M. Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005 (logistic mixing).
    """
    chances, ages, weights, stretch, squash, rates = model
    part, count = mix
    half = squash.size // 2
    total = 0
    for k in range(count):
        total += weights[part, k] * np.int64(stretch[chances[k, active[k], node] >> 4])
    total = min(max(total >> _BITS, -half), half - 1)
    p = np.int64(squash[total + half])
    bit = _code_bit(bit, p, state, data, decoding)
    wanted = bit << _BITS
    for k in range(count):
        chance = np.int64(chances[k, active[k], node])
        age = ages[k, active[k], node]
        weights[part, k] += (np.int64(stretch[chance >> 4]) * (wanted - p)) >> _LEARN
        chance += ((wanted - chance) * rates[age]) >> _BITS
        chances[k, active[k], node] = min(max(chance, 16), 65520)
        ages[k, active[k], node] = min(np.int64(age) + 1, rates.size - 1)
    return bit


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
    active = np.zeros(CONTEXTS, np.int64)
    row, column, last, before = np.int64(_QUIET), 0, np.int64(0), np.int64(0)
    bits = model[2].shape[0] - 2
    limit = data.size + SLACK if decoding else data.size - SLACK
    for i in range(codes.size):
        if state[AT] > limit:
            return False
        here = np.int64(columns[column])
        beside = np.int64(columns[column - 1] if column > 0 else here)
        beside += np.int64(columns[column + 1] if column + 1 < stride else here)
        active[0], active[1] = 0, before + 4 * np.int64(above[column])
        active[2], active[3] = levels[here >> 4], levels[min(here + row + (beside >> 1) >> 5, 4095)]
        distance = np.int64(codes[i]) - mode
        activity = np.int64(0)
        if _model_bit(1 if distance != 0 else 0, 0, (0, CONTEXTS), active, model, state, data, decoding):
            active[1], active[2], active[3] = active[2], levels[row >> 4], last
            sign = _model_bit(1 if distance < 0 else 0, 1 << bits, (1, CONTEXTS), active, model, state, data, decoding)
            active[1], active[3] = sign, last >> 1
            size, node = abs(distance) - 1, 1
            for depth in range(bits):
                bit = size >> (bits - 1 - depth) & 1
                node = node << 1 | _model_bit(bit, node, (depth + 2, CONTEXTS), active, model, state, data, decoding)
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
        column += 1
        if column == stride:
            column = 0
    return True


@hot
def spell(letters: Any, start: int, data: Any, state: Any, model: Any, decoding: bool) -> bool:
    """Writes the letters from `start` on into `data`, or fills them from it; False when the data is too small.

    Each order keeps the chances of all its contexts in one table, found by a hash of the letters before and the node. How
    many orders have been here before says which weights mix them: the longer the context that is known, the surer.
    """
    ages = model[1]
    active, mixed = np.zeros(len(ORDERS), np.int64), np.zeros(len(ORDERS), np.int64)
    limit = data.size + SLACK if decoding else data.size - SLACK
    for i in range(start, letters.size):
        if state[AT] > limit:
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
                known += ages[k, active[k], 0] > 0
            bit = letters[i] >> (7 - depth) & 1
            node = node << 1 | _model_bit(bit, 0, (known, len(ORDERS)), active, model, state, data, decoding)
        letters[i] = node - 256
    return True
