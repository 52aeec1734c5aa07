"""The static entropy coder: integers to bytes under a model that is fitted to all of them and stored in front.

The loops are in `kernels`, which is imported at the first call, because numba takes a third of a second to load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Codes, Data
from enxuto.coding.models import Model, read_table
from enxuto.errors import ArtifactError

_LANES = 8
_STATE_BYTES = 4 * _LANES
OVERHEAD_BYTES = 3 * _LANES  # of the states: half of them never carries information, a quarter not on average


def count(codes: Codes, symbols: int) -> NDArray[np.int64]:
    """How often each symbol occurs. Shapes: codes [count] -> [symbols]."""
    from enxuto.coding.kernels import histogram

    counts = np.zeros((4, symbols), np.int64)
    histogram(codes, counts)
    return counts.sum(axis=0)


def estimate(counts: NDArray[np.int64], model: Model, table: bytes) -> float:
    """The bytes that `encode` will give for codes with these counts."""
    return model.bits(counts) / 8 + len(table) + OVERHEAD_BYTES


def encode(codes: Codes, model: Model, head: bytes, expected_bits: float) -> bytes:
    """The codes as: head, which ends in the table, eight states, words. Every code must have a frequency in the model, which
    expects so many bits.

    Shapes: codes [count].
    """
    from enxuto.coding.kernels import rans_encode

    padded = codes
    if codes.size % _LANES:
        padded = np.full(-(-codes.size // _LANES) * _LANES, int(model.frequencies.argmax()), codes.dtype)
        padded[: codes.size] = codes
    states, first, room = np.empty(_LANES, np.uint32), -1, int(expected_bits / 16 * 1.001) + 64
    while first < 0:  # memory that is never touched still takes time to come by: ask for what should suffice
        words = np.empty(room + _LANES + 1, np.uint16)
        first = rans_encode(padded, model.frequencies, model.precision, words, states)
        room = padded.size
    return b"".join([head, states.astype("<u4", copy=False).data, words[first:].astype("<u2", copy=False).data])


def decode(data: Data, size: int, symbols: int) -> Codes:
    """The `size` codes that `encode` wrote: uint8 up to 256 symbols, uint16 above.

    Raises: ArtifactError when the data is too short, too long or contradicts itself.
    """
    from enxuto.coding.kernels import rans_decode

    model, at = read_table(data, symbols)
    if len(data) < at + _STATE_BYTES or (len(data) - at) % 2:
        raise ArtifactError(f"an entropy-coded stream of {size} codes ends after {len(data)} bytes; the file is damaged.")
    states = np.frombuffer(data, "<u4", _LANES, at).astype(np.uint32)
    used = (len(data) - at - _STATE_BYTES) // 2
    words = np.empty(used + _LANES, np.uint16)
    words[:used], words[used:] = np.frombuffer(data, "<u2", used, at + _STATE_BYTES), 0
    codes: Codes = np.empty(-(-size // _LANES) * _LANES, np.uint8 if symbols <= 256 else np.uint16)
    if not rans_decode(words, used, states, model.frequencies, model.precision, codes):
        raise ArtifactError(f"an entropy-coded stream of {size} codes does not decode; the file is damaged.")
    return codes[:size]
