"""What leads from one array to another of the same dtype and shape: small numbers where they are close; exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def difference(own: Array, other: Array) -> Array:
    """What leads from the other elements to these: small numbers where they are close, 0 where they are the same.

    Bit patterns are ordered as the floats are (those of negative ones turned round), subtracted, and the sign moved to
    the lowest bit. Exact for every pattern. Shapes: [count] of one dtype -> [count] of that dtype.
    """
    a, b = _ordered(own), _ordered(other)
    down = a - b
    top = down.dtype.type(8 * down.dtype.itemsize - 1)
    folded: Array = (down << down.dtype.type(1)) ^ (np.zeros(1, down.dtype) - (down >> top))
    return folded.view(own.dtype)


def added(change: Array, other: Array) -> Array:
    """The elements of which `difference` gave this change."""
    folded, b = _unsigned(change), _ordered(other)
    one = folded.dtype.type(1)
    down = (folded >> one) ^ (np.zeros(1, folded.dtype) - (folded & one))
    return _ordered_back(down + b, change.dtype)


def _unsigned(values: Array) -> Array:
    return np.ascontiguousarray(values).view(f"u{min(8, values.dtype.itemsize)}")


def _ordered(values: Array) -> Array:
    bits = _unsigned(values)
    top = bits.dtype.type(1 << 8 * bits.dtype.itemsize - 1)
    return np.where(bits & top, ~bits, bits | top) if values.dtype.kind not in "iu" or values.dtype == np.uint16 else bits


def _ordered_back(bits: Array, dtype: np.dtype[Any]) -> Array:
    top = bits.dtype.type(1 << 8 * bits.dtype.itemsize - 1)
    if dtype.kind not in "iu" or dtype == np.uint16:
        bits = np.where(bits & top, bits & ~top, ~bits)
    return bits.view(dtype)
