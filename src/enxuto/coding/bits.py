"""How many bits codes take, and the varint that lengths are written in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.errors import ArtifactError

Codes = NDArray[np.unsignedinteger[Any]]
"""One symbol per element: uint8 up to 256 symbols, uint16 above."""
Data = bytes | memoryview
_VARINT_BYTES = 9  # 63 bits: more than any length on a disk


def width(symbols: int) -> int:
    """The bits that one of `symbols` different codes takes when packed; 0 for a single symbol."""
    return (symbols - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that `count` codes of `bits` bits take.

    >>> packed_bytes(8, 3), packed_bytes(9, 3)
    (3, 4)
    """
    return (count * bits + 7) // 8


def write_varint(value: int) -> bytes:
    """A number from 0 up, seven bits a byte, lowest first; below 128 it takes one byte."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: Data, at: int) -> tuple[int, int]:
    """The number written at `at`, and the place behind it.

    Raises: ArtifactError when the data ends inside it, it is longer than a length can be, or not in its shortest form.
    """
    value = 0
    for index, byte in enumerate(data[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                break
            return value, at + index + 1
    raise ArtifactError(f"no number stands at byte {at} of {len(data)}; the file is damaged.")
