"""The index of a .nxt file: what its tensors are and where, as few bytes; and the rules of how streams lie in the file.

Nothing here opens a file: `container` does. See docs/format.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from enxuto.coding.adaptive import MAX_TEXT, decode_text, encode_text
from enxuto.coding.bits import read_varint, write_varint
from enxuto.coding.integers import MAX_SYMBOLS
from enxuto.errors import ArtifactError

MAX_INDEX_BYTES = 1 << 24  # some 200,000 tensors; bounds the time that a lying index can take
PIECE = 1 << 22  # elements of a tensor that one stream holds
BLOCK_BYTES = 1 << 12  # of streams that have one checksum together
MOST_AXES = 32  # numpy 1.26 has no more
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
)
_FOREIGN = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
NUMPY = {name: np.dtype(_FOREIGN.get(name, name)) for name in DTYPES}
# What an index usually says, so that the text coder has seen it before. A change of it is a new version of the format.
PRIMER = (
    b'{"args":{"in_features":64,"out_features":10,"bias":true},"kind":"Linear","sizes":{"in_channels":16,"out_channels":32,'
    b'"groups":1,"num_features":32},"tensors":["weight","bias"]},"input":8,"same":{"weight_hh_l0","weight_ih_l0","bias_hh_l0",'
    b'"in_proj_weight":["affine",8,"group",64]},{"edits":[{"coded":{"weight":["affine",8,"channel"]},"path":"features.0"},'
    b'{"coded":{"bias":["affine",8,"tensor"],"weight":["table",4]},"path":"layers.1.conv2"},'
    b'{"coded":{"bias":["affine",8,"tensor"],"weight":["table",4]},"path":"fc"}]}'
    b"layers.0.norm1.weight\0layers.0.norm1.bias\0layers.0.norm1.running_mean\0layers.0.norm1.running_var\0"
    b"layers.0.norm1.num_batches_tracked\0features.0.bias\0blocks.0.conv1.coded.weight.codes\0blocks.0.conv1.coded.weight.scale\0"
    b"blocks.0.conv1.coded.bias.codes\0blocks.0.conv1.coded.bias.scale\0fc.coded.weight.codes\0fc.coded.weight.codebook\0"
    b"fc.coded.bias.codes\0fc.coded.bias.scale\0fc2.coded.weight.codes\0fc2.coded.weight.codebook\0fc2.coded.bias.codes\0"
    b"fc2.coded.bias.scale\0"
    b"\x0a\0\1\x10\x0a\0\1\x10\x0a\0\1\x20\x0a\0\1\x20\x08\0\0\1\x10\4\x40\x20\3\3\x0a\0\1\x40\1\xff\1\1\x40\x0a\0\1\1"
    b"\1\x10\4\x10\x10\3\3\x09\0\1\x10\1\xff\1\1\x10\x0a\0\0\1\x10\4\x20\x20\3\3\x09\0\1\x10\1\xff\1\1\x20\x0a\0\0"
    b"\1\x10\2\x40\x40\x09\0\1\x10\1\xff\1\1\x40\x0a\0\0\1\x10\2\x0a\x40\x09\0\1\x10\1\xff\1\1\x0a\x0a\0\0\x21\x0b\5\x21\x0b\5"
)


@dataclass(frozen=True)
class Entry:
    """One tensor as the index describes it; `symbols` is the number of different codes, None for a plain array."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    symbols: int | None

    @cached_property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor; an axis of length 0 counts as 1, so that the other axes stay bounded too."""
        return math.prod(max(1, size) for size in self.shape) * NUMPY[self.dtype].itemsize

    def pieces(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """First and last element and shape of what each stream holds: whole rows where a row is no longer than a piece."""
        row, step = self._step
        for start in range(0, self.count, step):
            stop = min(start + step, self.count)
            yield start, stop, ((stop - start) // row, row) if row > 1 and step % row == 0 else (stop - start,)

    @property
    def streams(self) -> int:
        """How many streams hold the tensor."""
        return -(-self.count // self._step[1])

    @property
    def _step(self) -> tuple[int, int]:
        """Elements of a row, and of a stream."""
        row = self.count // self.shape[0] if self.shape and self.count else 1
        return row, PIECE // row * row if row <= PIECE else PIECE

    def check(self) -> Entry:
        """The entry itself, when dtype, shape and symbols make sense.

        Raises: ArtifactError when they do not.
        """
        if self.dtype not in NUMPY:
            raise ArtifactError(f"tensor '{self.name}' has the unknown dtype '{self.dtype}'; known are {', '.join(DTYPES)}")
        if len(self.shape) > MOST_AXES or not all(type(size) is int and size >= 0 for size in self.shape):
            raise ArtifactError(f"tensor '{self.name}' has the shape {str(self.shape)[:60]}; at most 32 axes from 0 up are kept")
        if self.symbols is not None:
            wide = {"uint8": 256, "uint16": MAX_SYMBOLS}.get(self.dtype, 0)
            if type(self.symbols) is not int or not 1 <= self.symbols <= wide:
                raise ArtifactError(
                    f"tensor '{self.name}' of {self.dtype} cannot hold symbols={self.symbols}; uint8 holds 1 to 256"
                )
        if "\0" in self.name:
            raise ArtifactError(f"tensor {self.name!r} has a zero letter in its name, which ends it; name it otherwise")
        return self


def write_index(meta: Mapping[str, Any], entries: Sequence[Entry], lengths: Iterable[int], *, plain: bool) -> bytes:
    """The index: its length, 0 where it is `plain` (or too long to be coded); the bytes that follow; these.

    Raises: ValueError, TypeError or RecursionError when `meta` is not JSON.
    """
    text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    names = b"".join(entry.name.encode() + b"\0" for entry in entries)
    rows = b"".join(map(_row, entries))
    whole = write_varint(len(text)) + text + write_varint(len(entries)) + names + rows + b"".join(map(write_varint, lengths))
    if len(whole) > MAX_INDEX_BYTES:
        raise ArtifactError(f"the index takes {len(whole)} bytes, more than {MAX_INDEX_BYTES}; shorten names or meta.")
    plain |= len(whole) > MAX_TEXT  # which the reader of coded texts refuses
    coded = whole if plain else encode_text(whole, PRIMER)
    return write_varint(0 if plain else len(whole)) + write_varint(len(coded)) + coded


def read_index(data: bytes) -> tuple[dict[str, Any], list[Entry], list[int], int]:
    """The meta, the entries and the lengths of all streams, in the order of the file; and the place behind the index.

    Raises: ArtifactError when the index is damaged.
    """
    letters, at = read_varint(data, 0)
    if letters > MAX_INDEX_BYTES:
        raise ArtifactError(f"an index of {letters} bytes is larger than {MAX_INDEX_BYTES}")
    size, at = read_varint(data, at)
    if size > len(data) - at:
        raise ArtifactError(f"an index of {size} bytes does not fit into {len(data) - at}")
    behind = at + size
    whole = decode_text(data[at:behind], letters, PRIMER) if letters else data[at:behind]
    length, at = read_varint(whole, 0)
    if length > len(whole) - at:
        raise ArtifactError(f"meta of {length} bytes does not fit into {len(whole) - at}")
    meta = _meta(whole[at : at + length])
    count, at = read_varint(whole, at + length)
    if 4 * count > len(whole) - at:
        raise ArtifactError(f"{count} tensors do not fit into {len(whole) - at} bytes")
    names = []
    for _ in range(count):
        end = whole.find(b"\0", at)
        if end < 0:
            raise ArtifactError("the name of a tensor does not end")
        names.append(whole[at:end])
        at = end + 1
    entries, lengths = [], []
    for name in names:
        entry, at = _entry(whole, at, name)
        entries.append(entry)
    if len({entry.name for entry in entries}) < len(entries):
        raise ArtifactError("the index names a tensor twice")
    for entry in entries:
        if entry.streams > len(whole) - at:
            raise ArtifactError(f"tensor '{entry.name}' of {entry.count} elements has more streams than the index holds")
        for _ in range(entry.streams):
            length, at = read_varint(whole, at)
            lengths.append(length)
    if at != len(whole):
        raise ArtifactError(f"the index has {len(whole) - at} bytes too many")
    return meta, entries, lengths, behind


def blocks(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """The streams that have one checksum together, as first and last number: a block ends behind the stream that fills it."""
    found, first, size = [], 0, 0
    for number, length in enumerate(lengths):
        size += length
        if size >= BLOCK_BYTES:
            found.append((first, number + 1))
            first, size = number + 1, 0
    return found + [(first, len(lengths))] * (size > 0)


def _row(entry: Entry) -> bytes:
    sizes = b"".join(map(write_varint, entry.shape))
    return bytes([DTYPES.index(entry.dtype)]) + write_varint(entry.symbols or 0) + bytes([len(entry.shape)]) + sizes


def _entry(data: bytes, at: int, name: bytes) -> tuple[Entry, int]:
    try:
        kind = data[at]
        symbols, at = read_varint(data, at + 1)
        axes, at = data[at], at + 1
        shape = []
        for _ in range(min(axes, MOST_AXES + 1)):
            size, at = read_varint(data, at)
            shape.append(size)
        dtype = DTYPES[kind]
        return Entry(name.decode(), dtype, tuple(shape), symbols or None).check(), at
    except (IndexError, UnicodeDecodeError) as error:
        raise ArtifactError(f"a tensor is not described by dtype, symbols and shape ({error})") from error


def _meta(text: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(text.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the meta is not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise ArtifactError(f"the meta is {type(meta).__name__}, not an object")
    return meta


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
