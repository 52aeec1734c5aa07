"""The .nxt file as bytes: a header, one stream per tensor, a checksum. What the tensors mean is not known here.

Written whole or not at all, and the same input gives the same bytes. Reading trusts nothing: every length is checked
before it is used, and no file makes the reader take much more memory than
`memory_limit_bytes` says. See docs/format.md.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.adaptive import decode_text, encode_text
from enxuto.coding.bits import read_varint, write_varint
from enxuto.coding.stream import MAX_SYMBOLS, decode_array, decode_integers, encode_array, encode_integers
from enxuto.errors import ArtifactError
from enxuto.files import write_bytes

MAGIC = b"\x93NXT"  # a first byte above 127 keeps the file from being taken for text
VERSION = 1
HEADER = "header"  # the key, among section names, of all bytes that are no payload
MAX_HEADER_BYTES = 1 << 22  # some 40,000 tensors; bounds the time that a lying header can take
FREE_BYTES = 1 << 26
BYTES_PER_BYTE = 1024
_CHECKSUM_BYTES = 4
_END = b"\n"  # of the JSON in the header; JSON itself writes a line end as two letters
_FOREIGN = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_NATIVE = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_DTYPES = {name: np.dtype(_FOREIGN.get(name, name)) for name in (*_NATIVE, *_FOREIGN)}
# What headers usually say, so that the text coder has seen it before. A change of it is a new VERSION.
_PRIMER = (
    b'[["complex64","float8_e4m3fn","int16","uint16",65536],"args":{"in_features":64,"out_features":10,"bias":true},'
    b'"kind":"Linear","sizes":{"in_channels":16,"out_channels":32,"groups":1,"num_features":32},"tensors":["weight","bias"'
    b']},"input":8,"same":{"weight_hh_l0","weight_ih_l0","bias_hh_l0","in_proj_weight":["affine",8,"group",64]},"path":'
    b'"blocks.0.conv1"},[{"edits":[{"coded":{"weight":["affine",8,"channel"]},"path":"features.0"},{"coded":{"weight":['
    b'"table",4]},"path":"layers.1.conv2"},{"coded":{"weight":["table",4]},"path":"fc"}]},[["layers.0.norm1.weight",'
    b'"float32",[16],null],["layers.0.norm1.bias","float32",[16],null],["layers.0.norm1.running_mean","float32",[16],null],'
    b'["layers.0.norm1.running_var","float32",[16],null],["layers.0.norm1.num_batches_tracked","int64",[],null],'
    b'["layers.0.conv1.bias","float16",[64],null],["layers.0.conv1.coded.weight.codes","uint8",[64,32,3,3],255],'
    b'["layers.0.conv1.coded.weight.scale","bfloat16",[64],null],["fc.bias","float32",[10],null],'
    b'["fc.coded.weight.codes","uint8",[10,64],16],["fc.coded.weight.codebook","float16",[16],null]]]\n'
)


@dataclass(frozen=True, eq=False)
class Section:
    """One tensor as the file keeps it.

    `dtype` is a numpy name, or "bfloat16", "float8_e4m3fn" or "float8_e5m2", whose bits `array` holds as unsigned
    integers.
    `symbols` is the number of different codes when `array` holds codes, one per element, as uint8 or uint16; else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    symbols: int | None
    array: NDArray[Any] = field(repr=False)


def write(path: str | os.PathLike[str], meta: Mapping[str, Any], sections: Sequence[Section]) -> dict[str, int]:
    """Writes the file and gives its bytes by section name, and under "header" all others; they sum to the file's size.

    Raises: ArtifactError when a section contradicts itself, a name occurs twice or `meta` is not JSON; OutputError when
    the file cannot be written.
    """
    _check_sections(sections)
    try:
        plain = [dict(meta), [[s.name, s.dtype, list(s.shape), s.symbols] for s in sections]]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"meta of '{path}' is not JSON: {error}; use text, finite numbers, lists and dicts.") from error
    payloads = [encode_array(s.array) if s.symbols is None else encode_integers(s.array, s.symbols) for s in sections]
    text += _END + b"".join(write_varint(len(payload)) for payload in payloads)
    if len(text) > MAX_HEADER_BYTES:
        raise ArtifactError(f"the header of '{path}' takes {len(text)} bytes, more than {MAX_HEADER_BYTES}; shorten meta.")
    header = encode_text(text, _PRIMER)
    head = MAGIC + bytes([VERSION]) + write_varint(len(text)) + write_varint(len(header)) + header
    body = b"".join([head, *payloads])
    needed = sum(_decoded_bytes(s.shape, s.array.dtype) for s in sections)
    missing = -(-(needed - FREE_BYTES) // BYTES_PER_BYTE) - len(body) - _CHECKSUM_BYTES
    body += bytes(max(0, missing))
    write_bytes(path, body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little"))
    return _ledger([s.name for s in sections], map(len, payloads), len(body) + _CHECKSUM_BYTES)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Section]]:
    """The meta and the sections that `write` was given; arrays are fresh, contiguous and writable.

    Raises: ArtifactError when the file is missing, foreign, truncated, altered, of a newer version or lies.
    """
    data = _load(path)
    meta, table = _parse(path, data)
    sections = []
    for entry, start, end in table:
        try:
            if entry.symbols is None:
                array = decode_array(data[start:end], _DTYPES[entry.dtype], entry.shape)
            else:
                count = math.prod(entry.shape)
                codes = decode_integers(data[start:end], count, entry.symbols)
                array = codes.astype(_DTYPES[entry.dtype], copy=False).reshape(entry.shape)
        except ArtifactError as error:
            reason = str(error).removesuffix("; the file is damaged.")
            raise ArtifactError(f"tensor '{entry.name}' of '{path}': {reason}; copy or save it again.") from error
        sections.append(Section(entry.name, entry.dtype, entry.shape, entry.symbols, array))
    return meta, sections


def sizes(path: str | os.PathLike[str]) -> dict[str, int]:
    """What `write` gave, from the file alone and without decoding a tensor.

    Raises: ArtifactError as `read`, except for damage inside a tensor that the checksum does not show.
    """
    data = _load(path)
    _, table = _parse(path, data)
    return _ledger([entry.name for entry, _, _ in table], (end - start for _, start, end in table), len(data))


def memory_limit_bytes(file_bytes: int) -> int:
    """The bytes of tensors that a file of this size may hold: 64 MiB, and 1 KiB for each of its bytes.

    `write` pads a file that would hold more (only constants of enormous size do), so that the bound refuses none of
    ours.
    """
    return FREE_BYTES + BYTES_PER_BYTE * file_bytes


@dataclass(frozen=True)
class _Entry:
    """A section without its array."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    symbols: int | None


def _load(path: str | os.PathLike[str]) -> bytes:
    """The whole file, with magic, version and checksum found right."""
    if not Path(path).is_file():
        kind = "is not a file" if Path(path).exists() else "does not exist"
        raise ArtifactError(f"'{path}' {kind}; name a .nxt file that enxuto wrote.")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}; check its permissions.") from error
    if not data.startswith(MAGIC):
        raise ArtifactError(f"'{path}' is no .nxt file: it begins with {data[:4]!r}; name a file that enxuto wrote.")
    least = len(MAGIC) + 2 + _CHECKSUM_BYTES
    if len(data) < least:
        raise ArtifactError(f"'{path}' ends after {len(data)} bytes, a .nxt file has at least {least}; copy it again.")
    if data[len(MAGIC)] != VERSION:
        raise ArtifactError(f"'{path}' has format version {data[len(MAGIC)]}, this enxuto reads {VERSION}; upgrade enxuto.")
    if zlib.crc32(data[:-_CHECKSUM_BYTES]) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise ArtifactError(f"'{path}' was altered or cut off: its checksum is wrong; copy or save it again.")
    return data


def _parse(path: str | os.PathLike[str], data: bytes) -> tuple[dict[str, Any], list[tuple[_Entry, int, int]]]:
    """The meta, and for each section its entry with the place where its stream starts and ends."""
    try:
        end = len(data) - _CHECKSUM_BYTES
        letters, at = read_varint(data, len(MAGIC) + 1)
        length, at = read_varint(data, at)
        if length > end - at or letters > MAX_HEADER_BYTES:
            raise ArtifactError(f"a header of {letters} letters in {length} bytes does not fit into {end - at}")
        meta, entries, lengths = _header(decode_text(data[at : at + length], letters, _PRIMER))
        at += length
        if sum(lengths) > end - at or any(data[at + sum(lengths) : end]):
            raise ArtifactError(f"tensors of {sum(lengths)} bytes do not fill the {end - at} bytes behind the header")
        needed = sum(_decoded_bytes(entry.shape, _DTYPES[entry.dtype]) for entry in entries)
        if needed > memory_limit_bytes(len(data)):
            raise ArtifactError(f"tensors of {needed} bytes cannot come from a file of {len(data)}")
    except ArtifactError as error:
        reason = str(error).removesuffix("; the file is damaged.")
        raise ArtifactError(f"'{path}' contradicts itself: {reason}; copy or save it again.") from error
    table = []
    for entry, part in zip(entries, lengths, strict=True):
        table.append((entry, at, at + part))
        at += part
    return meta, table


def _header(text: bytes) -> tuple[dict[str, Any], list[_Entry], list[int]]:
    """The meta, the entries and the lengths of their streams."""
    written, _, rest = text.partition(_END)
    try:
        plain = json.loads(written.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the header is not JSON ({error})") from error
    match plain:
        case [dict() as meta, list() as rows]:
            entries = [_entry(row) for row in rows]
        case _:
            raise ArtifactError("the header is not a pair of meta and tensors")
    if len({entry.name for entry in entries}) < len(entries):
        raise ArtifactError("the header names a tensor twice")
    lengths, at = [], 0
    for _ in entries:
        length, at = read_varint(rest, at)
        lengths.append(length)
    if at != len(rest):
        raise ArtifactError(f"the header has {len(rest) - at} bytes too many")
    return meta, entries, lengths


def _entry(row: object) -> _Entry:
    match row:
        case [str() as name, str() as dtype, list() as shape, (int() | None) as symbols]:
            return _check_entry(_Entry(name, dtype, tuple(shape), symbols))
    raise ArtifactError(f"a tensor is described by {str(row)[:60]!r}, not by name, dtype, shape and symbols")


def _check_entry(entry: _Entry) -> _Entry:
    """The entry, when dtype, shape and symbols make sense."""
    if entry.dtype not in _DTYPES:
        raise ArtifactError(f"tensor '{entry.name}' has the unknown dtype '{entry.dtype}'; known are {', '.join(_DTYPES)}")
    whole = all(type(size) is int and size >= 0 for size in entry.shape)
    if not whole or len(entry.shape) > 32:  # numpy 1.26 stops at 32 axes
        raise ArtifactError(f"tensor '{entry.name}' has the shape {str(entry.shape)[:60]}; at most 32 axes from 0 up are kept")
    if entry.symbols is not None:
        wide = {"uint8": 256, "uint16": MAX_SYMBOLS}.get(entry.dtype, 0)
        if type(entry.symbols) is not int or not 1 <= entry.symbols <= wide:
            raise ArtifactError(
                f"tensor '{entry.name}' of {entry.dtype} cannot hold symbols={entry.symbols}; uint8 holds 1 to 256"
            )
    return entry


def _check_sections(sections: Iterable[Section]) -> None:
    names = set()
    for section in sections:
        _check_entry(_Entry(section.name, section.dtype, section.shape, section.symbols))
        if section.array.shape != section.shape or section.array.dtype != _DTYPES[section.dtype]:
            raise ArtifactError(
                f"tensor '{section.name}' is said to be {section.dtype} {section.shape}, but its array is "
                f"{section.array.dtype} {section.array.shape}; give the array as it is described."
            )
        if section.name in names:
            raise ArtifactError(f"two tensors are called '{section.name}'; give each its own name.")
        names.add(section.name)


def _decoded_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """The bytes of the tensor; an axis of length 0 counts as 1, so that the other axes stay bounded too."""
    return math.prod(max(1, size) for size in shape) * dtype.itemsize


def _ledger(names: Sequence[str], lengths: Iterable[int], file_bytes: int) -> dict[str, int]:
    """Bytes by name; a tensor that is itself called "header" is counted with the header."""
    by_name = dict(zip(names, lengths, strict=True))
    rest = file_bytes - sum(by_name.values())
    return by_name | {HEADER: rest + by_name.get(HEADER, 0)}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
