"""The adaptive coder: integers to bytes under a model that is learnt on the way, so that no table is stored.

Slower than the static coder of `simple`, and smaller where neighbouring weights were pruned together or where a tensor
is so small that a table weighs; and for texts. The loops are in `adaptive_kernels`, imported at the first call.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Codes, Data, read_varint, width, write_varint
from enxuto.errors import ArtifactError

Model = tuple[NDArray[Any], ...]
"""Chances with their ages [context, level, node], weights [part, context], and three fixed tables."""

MAX_SYMBOLS = 256
MAX_CODES = 1 << 20  # more would take seconds to read; reader and writer refuse it
MAX_TEXT = 1 << 20
_HALF = 3072  # logarithms of odds reach from -12 to 12, in steps of 1 / 256
_STEP = 128
_WEIGHT = 19661  # 0.3 of 65536, that of each context at first: over 1 / CONTEXTS learns sooner
# 65536 / (1 + exp(-x)) for x = -12, -11.5, ... 12, at least 1 and at most 65535
SQUASH = (
    *(1, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98),
    *(162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743),
    *(32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269),
    *(65374, 65438, 65476, 65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535),
    *(65535,),
)
_NEW = np.array([0, 1 << 32, 0, 0], np.int64)  # state of a writer: low, range, unused, place
_LETTER = 16  # bytes of a letter, at most: eight decisions of sixteen bits
_LOOKAHEAD = 4  # bytes the reader is ahead of the writer


def encode(codes: Codes, stride: int, symbols: int, budget: int) -> bytes | None:
    """The codes in at most `budget` bytes; None when they take more.

    `stride` is the number of columns when the codes are the rows of a matrix, 1 when they are not.
    Shapes: codes [count], from one to `MAX_CODES`, at most 256 symbols.
    """
    from enxuto.coding.adaptive_kernels import SLACK, walk

    mode = int(np.bincount(codes).argmax())
    head = write_varint(stride) + write_varint(mode)
    data = np.zeros(budget + 2 * SLACK, np.uint8)
    state = _NEW.copy()
    if not walk(codes.copy(), (stride, mode, symbols), data, state, _levels(), _fresh(symbols, mode), False):
        return None
    body = head + _finished(data, state)
    return body if len(body) <= budget else None


def decode(data: Data, count: int, symbols: int) -> Codes:
    """The codes that `encode` wrote, as uint8.

    Raises: ArtifactError when the data is too short, too long or contradicts itself.
    """
    from enxuto.coding.adaptive_kernels import AT, walk

    stride, at = read_varint(data, 0)
    mode, at = read_varint(data, at)
    if not 1 <= stride <= count <= MAX_CODES or mode >= symbols or not 2 <= symbols <= MAX_SYMBOLS:
        raise ArtifactError(f"{count} codes cannot have stride={stride}, mode={mode} and symbols={symbols}; the file is damaged.")
    body = np.frombuffer(data[at:], np.uint8).copy()
    codes, state = np.zeros(count, np.uint8), _opened(body)
    whole = walk(codes, (stride, mode, symbols), body, state, _levels(), _fresh(symbols, mode), True)
    if not whole or not body.size <= state[AT] <= body.size + _LOOKAHEAD:
        raise ArtifactError(f"an adaptive stream of {count} codes does not decode; the file is damaged.")
    return codes


def encode_text(text: bytes, primer: bytes) -> bytes:
    """The text in few bytes; the more it resembles the primer, which the reader must know too, the fewer."""
    from enxuto.coding.adaptive_kernels import SLACK, spell

    model = _primed(primer)
    data, state = np.zeros(_LETTER * len(text) + 2 * SLACK, np.uint8), _NEW.copy()
    spell(np.frombuffer(primer + text, np.uint8).copy(), len(primer), data, state, model, False)
    return _finished(data, state)


def decode_text(data: Data, count: int, primer: bytes) -> bytes:
    """The text of `count` bytes that `encode_text` wrote.

    Raises: ArtifactError when the data is too short or too long.
    """
    from enxuto.coding.adaptive_kernels import AT, spell

    if count > MAX_TEXT:
        raise ArtifactError(f"a text of {count} bytes is longer than {MAX_TEXT}; the file is damaged.")
    body = np.frombuffer(data, np.uint8).copy()
    letters, state = np.frombuffer(primer + bytes(count), np.uint8).copy(), _opened(body)
    whole = spell(letters, len(primer), body, state, _primed(primer), True)
    if not whole or not body.size <= state[AT] <= body.size + _LOOKAHEAD:
        raise ArtifactError(f"a text of {count} bytes does not decode from {len(data)}; the file is damaged.")
    return letters[len(primer) :].tobytes()


def _primed(primer: bytes) -> Model:
    """A model of texts that has seen the primer."""
    fresh = _seen(primer)
    return fresh[0].copy(), fresh[1].copy(), *fresh[2:]


@cache
def _seen(primer: bytes) -> Model:
    from enxuto.coding.adaptive_kernels import ORDERS, SLACK, SLOT_BITS, spell

    ages, slow = (6, 2) if primer else (12, 3)  # an index repeats what it said once; bytes of floats do not
    model = _model((len(ORDERS), 1 << SLOT_BITS, 1), len(ORDERS) + 1, ages=ages, slow=slow)
    scratch = np.zeros(_LETTER * len(primer) + 2 * SLACK, np.uint8)
    spell(np.frombuffer(primer, np.uint8).copy(), 0, scratch, _NEW.copy(), model, False)
    return model


def _opened(body: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The state of a reader that has taken the first bytes; missing ones count as zero."""
    first = int.from_bytes(body[:_LOOKAHEAD].tobytes().ljust(_LOOKAHEAD, b"\0"), "big")
    return np.array([0, _NEW[1], first, _LOOKAHEAD], np.int64)


def _finished(data: NDArray[np.uint8], state: NDArray[np.int64]) -> bytes:
    """What was written, closed by the shortest number in [low, low + range); the reader takes what follows for zero."""
    low, end, kept = int(state[0]), min(int(state[0] + state[1]), 1 << 32), 0
    while (final := -(-low >> 32 - 8 * kept) << 32 - 8 * kept) >= end:
        kept += 1
    return data[: state[3]].tobytes() + final.to_bytes(4, "big")[:kept]


def _fresh(symbols: int, mode: int) -> Model:
    from enxuto.coding.adaptive_kernels import CONTEXTS, LEVELS

    bits = width(max(mode, symbols - 1 - mode))
    nodes = (1 << bits) + 1
    return _model((CONTEXTS, LEVELS, nodes), bits + 2, ages=400, slow=5)


def _model(shape: tuple[int, int, int], parts: int, *, ages: int, slow: int) -> Model:
    """A model that knows nothing: every chance is one half, every context has the same weight (of 65536)."""
    chances = np.full(shape, 1 << 15, np.uint32)  # and an age of 0 above
    weights = np.full((parts, shape[0]), _WEIGHT, np.int64)
    stretch, squash = _tables()
    rates = (1 << 17) // (2 * np.arange(ages) + slow)  # of learning: 1 / (age + slow / 2), until the last age
    return chances, weights, stretch, squash, rates


@cache
def _tables() -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Logarithm of odds for each 4096th of probability, and probability (of 65536) by logarithm of odds.

    Whole numbers from SQUASH on, straight lines between, so that a reader without floating point has the same.
    """
    place = np.arange(_STEP * (len(SQUASH) - 1))
    low = np.array(SQUASH)[place // _STEP]
    high = np.array(SQUASH)[place // _STEP + 1]
    squash = (low + ((high - low) * (place % _STEP) >> 7)).astype(np.int32)
    stretch = (np.searchsorted(squash, np.arange(8, 1 << 16, 16)) - _HALF).clip(-_HALF, _HALF - 1).astype(np.int16)
    return stretch, squash


@cache
def _levels() -> NDArray[np.int64]:
    """The context of an activity of 12 bits: twice its bit length, plus its second highest bit."""
    activities = [(value.bit_length(), value) for value in range(1 << 12)]
    return np.array([2 * bits + (value >> bits - 2 & 1 if bits > 1 else 0) for bits, value in activities], np.int64)
