"""Streams whose first byte names the method they are coded with: the one that gave fewest bytes.

Two kinds: integer codes (`encode_integers`) and arrays of any type (`encode_array`). The number of elements is not in
the stream; whoever keeps the stream keeps the shape. No stream is longer than its raw elements and one byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.coding import adaptive, coder, floats, models
from enxuto.coding.bits import Codes, pack, packed_bytes, read_varint, unpack, width, write_varint
from enxuto.errors import ArtifactError, RangeError

MAX_SYMBOLS = 1 << 16
CONSTANT, RAW, STATIC, ADAPTIVE, NARROW, PLANES, SPARSE = range(7)
_FEW = 8  # elements for which the lengths of planes alone cost more than planes save
_SMALL_CODES = 1 << 12
_SAMPLE_CODES = 1 << 17
_NOISE = 0.98
_CLEARLY = 0.99
METHODS = ("constant", "raw", "static", "adaptive", "narrow", "planes", "sparse")


def encode_integers(codes: NDArray[Any], symbols: int) -> bytes:
    """The codes in the fewest bytes found; empty for no codes.

    The first axis of the shape is taken for the rows of a matrix, whose columns may have something in common.
    Shapes: codes [...] of uint8 or uint16, one symbol per element, each below `symbols`.
    Raises: RangeError when a code is not below `symbols`, or there are more than 65,536 symbols.
    """
    flat = _checked(codes, symbols)
    if flat.size == 0:
        return b""
    if bool((flat == flat[0]).all()):
        return bytes([CONSTANT]) + _short(int(flat[0]))
    bits = width(symbols)
    smallest = bytes([RAW]) + pack(flat, bits)
    counts = np.bincount(flat, minlength=symbols)
    modelled = models.best(counts)
    if modelled is not None and coder.estimate(counts, *modelled) < len(smallest):
        smallest = min(smallest, bytes([STATIC]) + coder.encode(flat, *modelled), key=len)
    stride = flat.size // codes.shape[0] if codes.ndim > 1 and codes.shape[0] > 1 else 1
    if _may_adapt(flat, stride, symbols, len(smallest) / packed_bytes(flat.size, bits)):
        data = adaptive.encode(flat, stride, symbols, budget=len(smallest) - 2)
        smallest = smallest if data is None else bytes([ADAPTIVE]) + data
    return smallest


def decode_integers(data: bytes, count: int, symbols: int) -> Codes:
    """The codes that `encode_integers` wrote, flat: uint8 up to 256 symbols, uint16 above.

    `count` decides how much memory is used; a caller that has it from a file checks it first.
    Raises: ArtifactError when the data is damaged.
    """
    if count == 0 or not data:
        if count or data:
            raise ArtifactError(f"{len(data)} bytes are no stream of {count} codes; the file is damaged.")
        return np.empty(0, _dtype(symbols))
    method, body = data[0], data[1:]
    if method == CONSTANT:
        codes: Codes = np.full(count, _long(body, symbols), _dtype(symbols))
    elif method == RAW and symbols > 1:
        codes = unpack(body, count, width(symbols))
    elif method == STATIC:
        codes = coder.decode(body, count, symbols)
    elif method == ADAPTIVE:
        codes = adaptive.decode(body, count, symbols)
    else:
        raise _unknown(method, "codes")
    if int(codes.max()) >= symbols:
        raise ArtifactError(f"code {int(codes.max())} is not below its {symbols} symbols; the file is damaged.")
    return codes


def encode_array(array: NDArray[Any]) -> bytes:
    """An array of any numeric type in the fewest bytes found, bit for bit; empty for no elements.

    Shapes: array [...].
    """
    if array.dtype.itemsize == 1:
        return encode_integers(array.view(np.uint8), 2 if array.dtype == np.bool_ else 256)
    values = floats.patterns(array)
    if values.size == 0:
        return b""
    if bool((values == values[0]).all()):
        return bytes([CONSTANT]) + _short(int(values[0]))
    coded = [bytes([RAW]) + values.tobytes(), _narrow(values)]
    if values.size > _FEW:
        shape = array.shape if values.size == array.size else values.shape
        coded += [_planes(values, shape), _sparse(values, shape)]
    return min((data for data in coded if data), key=len)


def decode_array(data: bytes, dtype: np.dtype[Any] | str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array that `encode_array` wrote.

    `shape` decides how much memory is used; a caller that has it from a file checks it first.
    Raises: ArtifactError when the data is damaged.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.itemsize == 1:
        codes = decode_integers(data, count, 2 if dtype == np.bool_ else 256)
        return codes.view(dtype).reshape(shape)
    little = dtype.newbyteorder("<")
    pattern = floats.patterns(np.empty(0, little)).dtype
    elements = count * dtype.itemsize // pattern.itemsize
    values = _values(data, elements, pattern, nested=False)
    return values.view(little).astype(dtype, copy=False).reshape(shape)


def _values(data: bytes, count: int, pattern: np.dtype[Any], nested: bool) -> NDArray[Any]:
    """Unsigned values from a stream of `encode_array`; a sparse stream may not hold another one."""
    if count == 0 or not data:
        if count or data:
            raise ArtifactError(f"{len(data)} bytes are no stream of {count} elements; the file is damaged.")
        return np.empty(0, pattern)
    method, body, wide = data[0], data[1:], pattern.itemsize
    if method == CONSTANT:
        return np.full(count, _long(body, 1 << 8 * wide), pattern)
    if method == RAW:
        if len(body) != count * wide:
            raise ArtifactError(f"{count} elements take {count * wide} bytes, not {len(body)}; the file is damaged.")
        return np.frombuffer(body, pattern).copy()
    if method == NARROW:
        kept, odd = divmod(len(body), count)
        if odd or not 0 < kept < wide:
            raise ArtifactError(f"{len(body)} bytes do not narrow {count} elements of {wide}; the file is damaged.")
        table = np.zeros((count, wide), np.uint8)
        table[:, :kept] = np.frombuffer(body, np.uint8).reshape(count, kept)
        return table.reshape(-1).view(pattern)
    if method == PLANES and len(body) > 1 and body[0] < 2:
        planes, at = [], 1
        for plane in range(wide):
            part, at = _part(body, at, last=plane == wide - 1)
            planes.append(decode_integers(part, count, 256).astype(np.uint8, copy=False))
        return floats.join(planes, rotated=body[0] == 1)
    if method == SPARSE and not nested:
        part, at = _part(body, 0, last=False)
        filled = decode_integers(part, count, 2).view(np.bool_)
        values = np.zeros(count, pattern)
        values[filled] = _values(body[at:], int(filled.sum()), pattern, nested=True)
        return values
    raise _unknown(method, "elements")


def _narrow(values: NDArray[Any]) -> bytes:
    """Only the low bytes, when the high ones are zero everywhere; empty when they are not."""
    kept = (int(values.max()).bit_length() + 7) // 8
    if kept == values.dtype.itemsize:
        return b""
    table = values.view(np.uint8).reshape(values.size, -1)
    return bytes([NARROW]) + table[:, :kept].tobytes()


def _planes(values: NDArray[Any], shape: tuple[int, ...]) -> bytes:
    """Each byte plane coded by itself, with the sign moved beside the mantissa when that looks smaller."""
    tried = [(floats.split(values, rotated), rotated) for rotated in (False, True)]
    planes, rotated = min(tried, key=lambda pair: sum(map(_entropy_bytes, pair[0])))
    streams = [encode_integers(plane.reshape(shape), 256) for plane in planes]
    parts = [write_varint(len(stream)) + stream for stream in streams[:-1]]
    return bytes([PLANES, rotated]) + b"".join(parts) + streams[-1]


def _sparse(values: NDArray[Any], shape: tuple[int, ...]) -> bytes:
    """Where the elements are not zero, then those; empty when no element is zero."""
    filled = values != 0
    if bool(filled.all()):
        return b""
    mask = encode_integers(filled.view(np.uint8).reshape(shape), 2)
    kept = values[filled]
    planes = [_planes(kept, kept.shape)] if kept.size > _FEW else []
    return bytes([SPARSE]) + write_varint(len(mask)) + mask + min([bytes([RAW]) + kept.tobytes(), *planes], key=len)


def _may_adapt(flat: Codes, stride: int, symbols: int, left: float) -> bool:
    """Whether the slow coder is worth its time, `left` being what the others leave of the raw bytes.

    Small tensors: always. Larger ones: unless they look like noise, when a part of them comes out clearly smaller.
    """
    if symbols > adaptive.MAX_SYMBOLS or flat.size > adaptive.MAX_CODES:
        return False
    if flat.size <= _SAMPLE_CODES:
        return flat.size <= _SMALL_CODES or left < _NOISE
    if left >= _NOISE:
        return False
    sample = flat[:_SAMPLE_CODES]
    budget = int(_CLEARLY * _entropy_bytes(sample))
    return adaptive.encode(sample, min(stride, sample.size), symbols, budget) is not None


def _entropy_bytes(codes: Codes) -> float:
    """The bytes the codes take at their order-0 entropy."""
    counts = np.bincount(codes)
    used = counts[counts > 0]
    return float((used * np.log2(codes.size / used)).sum()) / 8


def _checked(codes: NDArray[Any], symbols: int) -> Codes:
    if not 1 <= symbols <= MAX_SYMBOLS:
        raise RangeError(f"symbols={symbols} is outside 1..{MAX_SYMBOLS}; use encode_array for wider integers.")
    if codes.dtype not in (np.uint8, np.uint16):
        raise RangeError(f"codes of type {codes.dtype} are not coded; give one symbol per element as uint8 or uint16.")
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and int(flat.max()) >= symbols:
        raise RangeError(f"code {int(flat.max())} is not below symbols={symbols}; give symbols={int(flat.max()) + 1}.")
    return flat.astype(_dtype(symbols), copy=False)


def _dtype(symbols: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if symbols <= 256 else np.uint16


def _short(value: int) -> bytes:
    """A number in as few bytes as it needs; none for 0."""
    return value.to_bytes((value.bit_length() + 7) // 8, "little")


def _long(body: bytes, limit: int) -> int:
    """The number that `_short` wrote, checked to be below `limit`."""
    value = int.from_bytes(body[:9], "little")
    if len(body) > 8 or value >= limit or (body and body[-1] == 0):
        raise ArtifactError(f"a constant of {len(body)} bytes is not below {limit}; the file is damaged.")
    return value


def _part(body: bytes, at: int, last: bool) -> tuple[bytes, int]:
    """The part at `at`, which gives its own length unless it is the last, and the place behind it."""
    if last:
        return body[at:], len(body)
    length, at = read_varint(body, at)
    if length > len(body) - at:
        raise ArtifactError(f"a part of {length} bytes does not fit into {len(body) - at}; the file is damaged.")
    return body[at : at + length], at + length


def _unknown(method: int, what: str) -> ArtifactError:
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(METHODS))
    return ArtifactError(f"method {method} does not fit a stream of {what}; this version knows {known}.")
