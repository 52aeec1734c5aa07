"""Codes of any width from 1 to 16 bits, packed without a gap; and the varint that lengths are written in.

The first code sits in the lowest bits of the first byte. Entropy coding is in `coder` and `adaptive`; which of them is
used, in `stream`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.errors import ArtifactError, RangeError

Codes = NDArray[np.unsignedinteger[Any]]
"""One symbol per element: uint8 up to 256 symbols, uint16 above."""
Data = bytes | memoryview
MAX_BITS = 16
_GROUP = 8  # eight codes of b bits fill b bytes exactly, so every column of a group has one fixed shift
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


def pack(codes: Codes, bits: int, head: bytes = b"") -> bytes:
    """The codes, `bits` bits each, as bytes behind the head; unused bits of the last byte are zero.

    Shapes: codes [count].
    Raises: RangeError when bits is outside 1..16 or a code does not fit.
    """
    _check_bits(bits)
    if codes.size and int(codes.max()) >> bits:
        raise RangeError(f"code {int(codes.max())} does not fit into bits={bits}; use bits={int(codes.max()).bit_length()}.")
    if bits in (8, 16):
        return b"".join([head, np.ascontiguousarray(codes, f"<u{bits // 8}").data])
    groups = -(-codes.size // _GROUP)
    columns = np.zeros((groups, _GROUP), np.uint16)
    columns.reshape(-1)[: codes.size] = codes
    out = np.zeros((groups, bits), np.uint8)
    for column, byte, shift in _overlaps(bits):
        part = columns[:, column] >> shift if shift >= 0 else columns[:, column] << -shift
        out[:, byte] |= part.astype(np.uint8)
    return head + out.tobytes()[: packed_bytes(codes.size, bits)]


def unpack(data: Data, count: int, bits: int) -> Codes:
    """The `count` codes that `pack` wrote: uint8 up to 8 bits, uint16 above.

    Raises: RangeError when bits is outside 1..16; ArtifactError when `data` is not exactly as long as `count` codes,
    or the bits behind the last code are not zero.
    """
    _check_bits(bits)
    needed = packed_bytes(count, bits)
    if len(data) != needed:
        raise ArtifactError(f"{count} codes of {bits} bits take {needed} bytes, not {len(data)}; the file is damaged.")
    if count * bits % 8 and data[-1] >> (count * bits % 8):
        raise ArtifactError(f"bits behind the last of {count} codes of {bits} bits are not zero; the file is damaged.")
    if bits in (8, 16):
        return np.frombuffer(data, f"<u{bits // 8}").astype(f"u{bits // 8}")
    groups = -(-count // _GROUP)
    packed = np.zeros((groups, bits), np.uint8)
    packed.reshape(-1)[:needed] = np.frombuffer(data, np.uint8)
    dtype = np.uint8 if bits <= 8 else np.uint16
    columns = np.zeros((groups, _GROUP), dtype)
    for column, byte, shift in _overlaps(bits):
        part = packed[:, byte].astype(np.uint16)
        columns[:, column] |= (part << shift if shift >= 0 else part >> -shift).astype(dtype)
    columns &= dtype((1 << bits) - 1)
    return columns.reshape(-1)[:count]


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


def _overlaps(bits: int) -> list[tuple[int, int, int]]:
    """(column, byte, shift) for each byte that a code of a group touches; the byte holds `code >> shift`."""
    touched = []
    for column in range(_GROUP):
        first = column * bits
        for byte in range(first // 8, (first + bits - 1) // 8 + 1):
            touched.append((column, byte, byte * 8 - first))
    return touched


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise RangeError(f"bits={bits} is outside 1..{MAX_BITS}; wider values are coded as byte planes by encode_array.")
