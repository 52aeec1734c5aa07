"""The index of a .nxt file: what its tensors are and where, as few bytes; and the rules of how streams lie in the file.

Nothing here opens a file: `container` does. See docs/format.md.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from enxuto.artifact.primer import PRIMER
from enxuto.coding.adaptive import MAX_TEXT, decode_text, encode_text
from enxuto.coding.bits import read_varint, write_varint
from enxuto.coding.integers import MAX_SYMBOLS
from enxuto.errors import ArtifactError

MAX_INDEX_BYTES = 1 << 24  # some 200,000 tensors; bounds the time that a lying index can take
PIECE = 1 << 22  # elements of a tensor that one stream holds
SHELF = 1 << 12  # elements that a shelf holds at most: what is decoded to read one of its tensors
BLOCK_BYTES = 1 << 12  # of streams that have one checksum together
MOST_AXES = 32  # numpy 1.26 has no more
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
)
_FOREIGN = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
NUMPY = {name: np.dtype(_FOREIGN.get(name, name)) for name in DTYPES}


@dataclass(frozen=True)
class Entry:
    """One tensor as the index describes it.

    `symbols` is the number of different codes, None for a plain array. `shelf` is the number, from 1, of the stream that it
    shares with other small tensors, 0 for a tensor that has streams of its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    symbols: int | None
    shelf: int = field(default=0, compare=False)  # where it lies is not what it is

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
        """How many streams hold nothing but the tensor."""
        return 0 if self.shelf else -(-self.count // self._step[1])

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
        if self.shelf and (self.symbols is not None or not 0 < self.count <= SHELF):
            raise ArtifactError(f"tensor '{self.name}' of {self.count} elements does not belong on a shelf")
        if "\0" in self.name:
            raise ArtifactError(f"tensor {self.name!r} has a zero letter in its name, which ends it; name it otherwise")
        return self


def shelves(entries: Iterable[Entry]) -> list[Entry]:
    """The shelves as plain tensors: what lies on each in a row, in the order of the tensors.

    Raises: ArtifactError when a shelf holds too much or different dtypes, or one is left out.
    """
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.shelf:
            found.setdefault(entry.shelf, []).append(entry)
    if [*found] != [*range(1, len(found) + 1)]:
        raise ArtifactError("the shelves are not numbered in the order of their first tensors")
    for number, row in found.items():
        if len({entry.dtype for entry in row}) > 1 or sum(entry.count for entry in row) > SHELF:
            raise ArtifactError(f"shelf {number} holds more than one dtype or {SHELF} elements")
    return [Entry(f"shelf {number}", row[0].dtype, (sum(entry.count for entry in row),), None) for number, row in found.items()]


def places(entries: Sequence[Entry]) -> dict[str, tuple[int, int]]:
    """By the name of a tensor: the number of the first stream that holds it, and its first element in there."""
    found, number, own = {}, 0, sum(entry.streams for entry in entries)
    filled: Counter[int] = Counter()
    for entry in entries:
        found[entry.name] = (own + entry.shelf - 1, filled[entry.shelf]) if entry.shelf else (number, 0)
        number += entry.streams
        filled[entry.shelf] += entry.count
    return found


def shares(entries: Sequence[Entry], amounts: Sequence[int]) -> dict[str, int]:
    """What each tensor has of the amounts of all streams; those on a shelf divide its amount by their elements."""
    filled, found = [shelf.count for shelf in shelves(entries)], {}
    for entry, (first, start) in zip(entries, places(entries).values(), strict=True):
        if entry.shelf:
            whole, all_ = amounts[first], filled[entry.shelf - 1]
            found[entry.name] = whole * (start + entry.count) // all_ - whole * start // all_
        else:
            found[entry.name] = sum(amounts[first : first + entry.streams])
    return found


def write_index(meta: Mapping[str, Any], entries: Sequence[Entry], lengths: Iterable[int], *, plain: bool) -> bytes:
    """The index: its length, 0 where it is `plain` or longer than `MAX_TEXT`; the bytes that follow; these.

    Raises: ValueError, TypeError or RecursionError when `meta` is not JSON.
    """
    text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    _meta(text)  # what no reader takes is not written: keys that are equal as texts, too much depth
    kinds = list(map(_kind, entries))
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    whole = b"".join(
        [
            *(write_varint(len(entries)), *(entry.name.encode() + b"\0" for entry in entries)),
            *(write_varint(len(text)), text),
            *(write_varint(len(numbers)), *numbers, *(write_varint(numbers[kind]) for kind in kinds)),
            *(write_varint(size) for size in _sizes(entries)),
            *map(write_varint, lengths),
        ]
    )
    if len(whole) > MAX_INDEX_BYTES:
        raise ArtifactError(f"the index takes {len(whole)} bytes, more than {MAX_INDEX_BYTES}; shorten names or meta.")
    plain = plain or len(whole) > MAX_TEXT
    coded = whole if plain else encode_text(whole, PRIMER)
    return write_varint(0 if plain else len(whole)) + write_varint(len(coded)) + coded


def read_index(data: bytes) -> tuple[dict[str, Any], list[Entry], list[int], int]:
    """The meta, the entries and the lengths of all streams, in the order of the file; and the place behind the index.

    Raises: ArtifactError when the index is damaged.
    """
    letters, at = read_varint(data, 0)
    size, at = read_varint(data, at)
    if max(letters, size) > MAX_INDEX_BYTES:
        raise ArtifactError(f"an index of {max(letters, size)} bytes is larger than {MAX_INDEX_BYTES}")
    if size > len(data) - at:
        raise ArtifactError(f"an index of {size} bytes does not fit into {len(data) - at}")
    behind = at + size
    whole = decode_text(data[at:behind], letters, PRIMER) if letters else data[at:behind]
    names, at = _read_names(whole)
    length, at = read_varint(whole, at)
    if length > len(whole) - at:
        raise ArtifactError(f"meta of {length} bytes does not fit into {len(whole) - at}")
    meta = _meta(whole[at : at + length])
    entries, at = _read_entries(whole, at + length, names)
    lengths = []
    for entry in [*entries, *shelves(entries)]:
        if entry.streams > len(whole) - at:
            raise ArtifactError(f"tensor '{entry.name}' of {entry.count} elements has more streams than the index holds")
        for _ in range(entry.streams):
            length, at = read_varint(whole, at)
            if length == 0:
                raise ArtifactError(f"a stream of tensor '{entry.name}' has no bytes")
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


def _kind(entry: Entry) -> bytes:
    """What tensors often have in common."""
    return b"".join(map(write_varint, (DTYPES.index(entry.dtype), entry.symbols or 0, len(entry.shape), entry.shelf)))


def _sizes(entries: Iterable[Entry]) -> Iterator[int]:
    """The sizes of all axes: 0 where one is as long as the first axis before this tensor, else one more than it is."""
    before = None
    for entry in entries:
        yield from (0 if size == before else size + 1 for size in entry.shape)
        before = entry.shape[0] if entry.shape else before


def _read_names(data: bytes) -> tuple[list[bytes], int]:
    count, at = read_varint(data, 0)
    if 2 * count > len(data) - at:
        raise ArtifactError(f"{count} tensors do not fit into {len(data) - at} bytes")
    names = []
    for _ in range(count):
        end = data.find(b"\0", at)
        if end < 0:
            raise ArtifactError("the name of a tensor does not end")
        names.append(data[at:end])
        at = end + 1
    if len(set(names)) < count:
        raise ArtifactError("the index names a tensor twice")
    return names, at


def _read_entries(data: bytes, at: int, names: Sequence[bytes]) -> tuple[list[Entry], int]:
    """The tensors, from the table of their kinds on."""
    number, at = read_varint(data, at)
    if number > len(names):
        raise ArtifactError(f"{len(names)} tensors are said to be of {number} kinds")
    kinds, chosen, used = [], [], 0
    for _ in range(number):
        values = []
        for _ in range(4):
            value, at = read_varint(data, at)
            values.append(value)
        if values[0] >= len(DTYPES) or values[2] > MOST_AXES:
            raise ArtifactError(f"a tensor of {values[2]} axes and dtype {values[0]} is none; at most {MOST_AXES} axes are kept")
        kinds.append(values)
    for _ in names:
        number, at = read_varint(data, at)
        if number > used or number >= len(kinds):
            raise ArtifactError(f"kind {number} of {len(kinds)} is named when {used} were")
        used = max(used, number + 1)
        chosen.append(kinds[number])
    if used < len(kinds):
        raise ArtifactError(f"only {used} of {len(kinds)} kinds are used")
    entries: list[Entry] = []
    before = None
    for name, (dtype, symbols, axes, shelf) in zip(names, chosen, strict=True):
        shape = []
        for _ in range(axes):
            size, at = read_varint(data, at)
            if size == 0 and before is None:
                raise ArtifactError("the first axis of all is said to be as long as one before")
            shape.append(size - 1 if size or before is None else before)
        before = shape[0] if shape else before
        try:
            entries.append(Entry(name.decode(), DTYPES[dtype], tuple(shape), symbols or None, shelf).check())
        except UnicodeDecodeError as error:
            raise ArtifactError(f"the name of a tensor is no text ({error})") from error
    return entries, at


def _meta(text: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(text.decode(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the meta is not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise ArtifactError(f"the meta is {type(meta).__name__}, not an object")
    return meta


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is larger than any number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found
