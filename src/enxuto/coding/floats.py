"""Wide elements as planes of single bytes, which code better apart: exponents repeat, mantissas do not.

Works on the bit patterns, so NaN payloads, infinities and -0.0 come back exactly. Which plane is coded how: `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_PATTERNS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


def patterns(array: Array) -> Array:
    """The elements as unsigned integers of the same bytes, little endian.

    Shapes: array [...] -> [count]; a complex element gives two.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    wide = _PATTERNS.get(flat.dtype.itemsize)
    return flat.view(_PATTERNS[8] if wide is None else wide)


def split(values: Array, rotated: bool) -> list[NDArray[np.uint8]]:
    """The bytes of all values, one plane per byte, the lowest first.

    `rotated` moves the highest bit to the lowest place first: the sign, so that the exponent of a float32 or bfloat16
    fills the last plane alone. Source: Hershcovitch et al., "ZipNN: Lossless Compression for AI Models", 2024.
    Shapes: values [count] unsigned -> planes [count] each.
    """
    wide = values.dtype.itemsize
    if rotated:
        one, rest = values.dtype.type(1), values.dtype.type(8 * wide - 1)
        values = values << one | values >> rest
    table = np.ascontiguousarray(values).view(np.uint8).reshape(-1, wide)
    return [np.ascontiguousarray(table[:, byte]) for byte in range(wide)]


def join(planes: Sequence[NDArray[np.uint8]], rotated: bool) -> Array:
    """The values that `split` took apart."""
    wide = len(planes)
    table = np.empty((planes[0].size, wide), np.uint8)
    for byte, plane in enumerate(planes):
        table[:, byte] = plane
    values: Array = table.reshape(-1).view(_PATTERNS[wide])
    if rotated:
        one, rest = values.dtype.type(1), values.dtype.type(8 * wide - 1)
        values = values >> one | values << rest
    return values
