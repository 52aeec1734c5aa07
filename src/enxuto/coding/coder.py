"""The static entropy coder: integers to bytes under a model that is fitted to all of them and stored in front.

The loops are in `kernels`, which is imported at the first call, because numba takes a third of a second to load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Codes, read_varint, write_varint
from enxuto.coding.models import Model, read_table
from enxuto.errors import ArtifactError

_LANES = 4
_STATE_BYTES = 4 * _LANES
_OVERHEAD_BYTES = 1 + 2 * _LANES  # the length of the table, and two bytes a lane that carry no information


def estimate(counts: NDArray[np.int64], model: Model, table: bytes) -> float:
    """The bytes that `encode` will give for codes with these counts."""
    return model.bits(counts) / 8 + len(table) + _OVERHEAD_BYTES


def encode(codes: Codes, model: Model, table: bytes) -> bytes:
    """The codes as: length of the table, table, four states, words. Every code must have a frequency in the model.

    Shapes: codes [count].
    """
    from enxuto.coding.kernels import rans_encode

    frequencies = model.frequencies.astype(np.uint32)
    starts = (np.cumsum(model.frequencies) - model.frequencies).astype(np.uint32)
    words = np.empty(codes.size + _LANES, np.uint16)
    states = np.empty(_LANES, np.uint32)
    mode = int(model.frequencies.argmax())
    first = rans_encode(codes, frequencies, starts, model.precision, mode, words, states)
    return b"".join([write_varint(len(table)), table, states.astype("<u4").tobytes(), words[first:].astype("<u2").tobytes()])


def decode(data: bytes, count: int, symbols: int) -> Codes:
    """The codes that `encode` wrote: uint8 up to 256 symbols, uint16 above.

    Raises: ArtifactError when the data is too short, too long or contradicts itself.
    """
    from enxuto.coding.kernels import rans_decode

    length, at = read_varint(data, 0)
    if len(data) < at + length + _STATE_BYTES or (len(data) - at - length) % 2:
        raise ArtifactError(f"an entropy-coded stream of {count} codes ends after {len(data)} bytes; the file is damaged.")
    model = read_table(data[at : at + length], symbols)
    at += length
    states = np.frombuffer(data, "<u4", _LANES, at).astype(np.uint32)
    used = (len(data) - at - _STATE_BYTES) // 2
    words = np.zeros(used + _LANES, np.uint16)
    words[:used] = np.frombuffer(data, "<u2", used, at + _STATE_BYTES)
    frequencies, total = model.frequencies, 1 << model.precision
    slots = np.repeat(np.arange(symbols, dtype=np.uint8 if symbols <= 256 else np.uint16), frequencies)
    offsets = np.arange(total) - np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
    table = (np.repeat(frequencies, frequencies) << 16 | offsets).astype(np.uint32)
    out: Codes = np.empty(-(-count // _LANES) * _LANES, slots.dtype)
    if not rans_decode(words, used, states, table, slots, model.precision, out):
        raise ArtifactError(f"an entropy-coded stream of {count} codes does not decode; the file is damaged.")
    return out[:count]
