"""Arrays of any numeric type as a stream, bit for bit: wide elements as planes of bytes, which code better apart.

Elements that repeat are coded by what they repeat (`repeats`). All methods work on the bit patterns, so NaN payloads, infinities
and -0.0 come back exactly. The planes are streams of `integers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from enxuto.coding import repeats
from enxuto.coding.bits import Codes, Data, read_varint, write_varint
from enxuto.coding.integers import costs, decode_integers, encode_integers, entropy_bytes
from enxuto.coding.stream import (
    CONSTANT,
    MATCHES,
    METHODS,
    NARROW,
    PLANES,
    RAW,
    SPARSE,
    VALUES,
    check_filled,
    read_constant,
    read_parts,
    unknown,
    write_constant,
    write_parts,
)
from enxuto.errors import ArtifactError

_PATTERNS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_FEW = 8  # elements for which the lengths of planes alone cost more than planes save
_MANY = 1 << 12  # elements whose planes are left to the fast coders: trained networks grow by 0.3 % at most
_SAMPLE = 1 << 14  # elements that decide whether the sign moves, and whether zeros are taken out
_ZEROS = 0.02  # from this fraction on


Matches = bool | Literal["always"]


def encode_array(array: NDArray[Any], *, fast: bool = False, matches: Matches = False) -> bytes:
    """An array of any numeric type in the fewest bytes found, bit for bit; empty for no elements. `fast` as for codes.

    `matches` tries what repeats too, for files that are not read on devices: where a look at the array says that it may
    pay, or "always".

    Shapes: array [...].
    """
    if array.dtype.itemsize == 1:
        codes = array.view(np.uint8)
        coded = encode_integers(codes, 2 if array.dtype == np.bool_ else 256, fast=fast)
        return min([coded, *_matched(codes, array.dtype, matches)], key=len)
    values = patterns(array)
    if values.size == 0:
        return b""
    if _constant(values):
        return write_constant(int(values[0]))
    smallest = min(_tried(array, values, fast, matches), key=len, default=b"")
    return smallest if 0 < len(smallest) <= values.nbytes else b"".join([bytes([RAW]), values.data])


def array_costs(array: NDArray[Any], *, matches: Matches = False) -> dict[str, int]:
    """The bytes that an array takes under each method that is tried for it, by its name; `matches` as for `encode_array`."""
    if array.dtype.itemsize == 1:
        codes = array.view(np.uint8)
        found = costs(codes, 2 if array.dtype == np.bool_ else 256)
        return found | {METHODS[data[0]]: len(data) for data in _matched(codes, array.dtype, matches)}
    values = patterns(array)
    if values.size == 0:
        return {}
    raw = {METHODS[RAW]: 1 + values.nbytes}
    if _constant(values):
        return raw | {METHODS[CONSTANT]: len(write_constant(int(values[0])))}
    return raw | {METHODS[data[0]]: len(data) for data in _tried(array, values, fast=False, matches=matches)}


def decode_array(data: Data, dtype: np.dtype[Any] | str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array that `encode_array` wrote.

    `shape` decides how much memory is used; a caller that has it from a file checks it first.
    Raises: ArtifactError when the data is damaged.
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if dtype.itemsize == 1:
        if count and len(data) and data[0] == MATCHES and dtype != np.bool_:
            return np.frombuffer(repeats.read_matches(memoryview(data)[1:], count), np.uint8).copy().view(dtype).reshape(shape)
        codes = decode_integers(data, count, 2 if dtype == np.bool_ else 256)
        return codes.view(dtype).reshape(shape)
    little = dtype.newbyteorder("<")
    pattern = patterns(np.empty(0, little)).dtype
    elements = count * dtype.itemsize // pattern.itemsize
    values = _values(memoryview(data), elements, pattern, nested=False)
    return values.view(little).astype(dtype, copy=False).reshape(shape)


def patterns(array: NDArray[Any]) -> NDArray[Any]:
    """The elements as unsigned integers of the same bytes, little endian.

    Shapes: array [...] -> [count]; a complex element gives two.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    wide = _PATTERNS.get(flat.dtype.itemsize)
    return flat.view(_PATTERNS[8] if wide is None else wide)


def split(values: NDArray[Any], rotated: bool) -> NDArray[np.uint8]:
    """The bytes of all values, one plane per byte, the lowest first.

    `rotated` moves the highest bit to the lowest place first: the sign, so that the exponent of a float32 or bfloat16
    fills the last plane alone. Source: Hershcovitch et al., "ZipNN: Lossless Compression for AI Models", 2024.
    Shapes: values [count] unsigned -> planes [bytes, count].
    """
    from enxuto.coding.kernels import split_planes

    planes = np.empty((values.dtype.itemsize, values.size), np.uint8)
    split_planes(values, int(rotated), planes)
    return planes


def join(planes: Sequence[Codes], rotated: bool) -> NDArray[Any]:
    """The values that `split` took apart."""
    from enxuto.coding.kernels import add_plane, rotate_right

    values = np.zeros(planes[0].size, _PATTERNS[len(planes)])
    for plane, row in enumerate(planes):
        add_plane(row, 8 * plane, values)
    if rotated:
        rotate_right(values, 1, 8 * len(planes))
    return values


def _values(data: Data, count: int, pattern: np.dtype[Any], nested: bool) -> NDArray[Any]:
    """Unsigned values from a stream of `encode_array`; what is inside another one may not hold a third."""
    if not check_filled(data, count):
        return np.empty(0, pattern)
    method, body, wide = data[0], data[1:], pattern.itemsize
    if method == CONSTANT:
        return np.full(count, read_constant(body, 1 << 8 * wide), pattern)
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
        return join([decode_integers(part, count, 256) for part in read_parts(body, 1, wide)], rotated=body[0] == 1)
    if method == SPARSE and not nested:
        mask, rest = read_parts(body, 0, 2)
        filled = decode_integers(mask, count, 2).view(np.bool_)
        values = np.zeros(count, pattern)
        values[filled] = _values(rest, int(filled.sum()), pattern, nested=True)
        return values
    if method == VALUES and not nested:
        symbols, at = read_varint(body, 0)
        if not 0 < symbols <= min(repeats.MAX_VALUES, count):
            raise ArtifactError(f"{count} elements cannot have {symbols} different values; the file is damaged.")
        different, codes = read_parts(body, at, 2)
        return _values(different, symbols, pattern, nested=True)[decode_integers(codes, count, symbols)]
    if method == MATCHES:
        return np.frombuffer(repeats.read_matches(body, count * wide), pattern).copy()
    raise unknown(method, "elements")


def _tried(array: NDArray[Any], values: NDArray[Any], fast: bool, matches: Matches) -> list[bytes]:
    """The streams of the methods that may be smaller than raw."""
    coded = []
    if values.size > _FEW:
        shape = array.shape if values.size == array.size else values.shape
        coded = [_planes(values, shape, fast), _sparse(values, shape, fast)]
        if matches:
            coded += _repeated(values, shape, matches)
    if values.size <= _FEW or array.dtype.kind in "iu":
        coded.append(_narrow(values))
    return [data for data in coded if data]


def _narrow(values: NDArray[Any]) -> bytes:
    """Only the low bytes, when the high ones are zero everywhere; empty when they are not."""
    kept = (int(values.max()).bit_length() + 7) // 8
    if kept == values.dtype.itemsize:
        return b""
    table = values.view(np.uint8).reshape(values.size, -1)
    return bytes([NARROW]) + table[:, :kept].tobytes()


def _planes(values: NDArray[Any], shape: tuple[int, ...], fast: bool) -> bytes:
    """Each byte plane coded by itself, with the sign moved beside the mantissa when that looks smaller."""
    sample = values[:: max(1, values.size // _SAMPLE)]
    fast = fast or values.size > _MANY  # on the bytes of floats the slow coders gain next to nothing
    rotated = min((False, True), key=lambda moved: sum(entropy_bytes(plane, 256) for plane in split(sample, moved)))
    streams = [encode_integers(plane.reshape(shape), 256, fast=fast) for plane in split(values, rotated)]
    return write_parts(streams, bytes([PLANES, rotated]))


def _sparse(values: NDArray[Any], shape: tuple[int, ...], fast: bool) -> bytes:
    """Where the elements are not zero, then those; empty when hardly any element is zero."""
    sample = values[:: max(1, values.size // _SAMPLE)]
    if np.count_nonzero(sample) > (1 - _ZEROS) * sample.size and values.size > _SAMPLE:
        return b""
    filled = values != 0
    if bool(filled.all()):
        return b""
    mask = encode_integers(filled.view(np.uint8).reshape(shape), 2, fast=fast)
    kept = values[filled]
    planes = [_planes(kept, kept.shape, fast)] if kept.size > _FEW else []
    return bytes([SPARSE]) + write_parts([mask, min([bytes([RAW]) + kept.tobytes(), *planes], key=len)])


def _matched(values: NDArray[Any], dtype: np.dtype[Any], matches: Matches) -> list[bytes]:
    """The stream of what stood before, told by where; none where it is not tried."""
    if dtype == np.bool_ or not values.size or not (matches == "always" or (matches and repeats.repeating(values.reshape(-1)))):
        return []
    return [bytes([MATCHES]) + repeats.write_matches(values)]


def _repeated(values: NDArray[Any], shape: tuple[int, ...], matches: Matches) -> list[bytes]:
    """The streams for elements that repeat: the different values and which one each is; what stood before."""
    found = repeats.table_of(values)
    streams = _matched(values, values.dtype, matches if found is None else "always")
    if found is None:
        return streams
    table, codes = found
    planes = _planes(table, table.shape, fast=False)
    tables = [bytes([RAW]) + table.tobytes(), *(data for data in (planes, _narrow(table)) if data)]
    coded = encode_integers(codes.reshape(shape), table.size)
    return [*streams, write_parts([min(tables, key=len), coded], bytes([VALUES]) + write_varint(table.size))]


def _constant(values: NDArray[Any]) -> bool:
    """True when all elements are the same; the ends tell nearly always that they are not."""
    return bool(values[0] == values[-1]) and bool((values == values[0]).all())
