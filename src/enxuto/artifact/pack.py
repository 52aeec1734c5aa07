"""Any file with tensors in it as a .nxt file, and back, byte for byte: `pack` and `unpack`.

A packed file is the tensors of the original and, as one more tensor, all bytes between them. `unpack` puts both together
again and knows no other format. With a parent, a tensor is kept as its difference to the parent's; one that is there
twice is kept once. Where the file as it stands is smaller by matches alone, it is kept so.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.artifact.container import Reader, memory_limit_bytes, write
from enxuto.artifact.index import NUMPY, Entry
from enxuto.artifact.protobuf import refuse_files_beside
from enxuto.artifact.sections import Section
from enxuto.artifact.spans import REST, Span, find_spans
from enxuto.artifact.twins import twins
from enxuto.coding import encode_array
from enxuto.coding.differences import added, difference
from enxuto.coding.repeats import repeating, write_matches
from enxuto.errors import ArtifactError, OutputError
from enxuto.files import whole_file
from enxuto.progress import say

_CHUNK = 1 << 22
_SAMPLE = 1 << 16  # elements by which a difference is weighed against the tensor itself
_SMALL, _LARGEST_WHOLE = 1 << 20, 1 << 26  # bytes of a file that is tried whole always, and where it repeats itself
_ONE_STREAM = 1 << 22  # bytes that one stream of bytes holds; elements of 16 bytes reach 16 times as far
_MUCH = 0.1  # of the passages of a file seen before, from which on it may be smaller as one piece
_ABOUT = 160  # bytes that a file needs beside what it holds, at most
_CLEARLY = 0.98  # of the bytes otherwise, which the file as one piece must reach: its tensors cannot be read one by one
PathLike = str | os.PathLike[str]
Array = NDArray[Any]


def pack(source: PathLike, path: PathLike, *, parent: PathLike | None = None, fast: bool = False) -> dict[str, int]:
    """Writes a .safetensors, torch or .onnx file as a .nxt file, and gives its bytes by tensor and under "header".

    `parent` is a file of the same kind, or one packed before: tensors of the same name, dtype and shape are kept as their
    difference to its own where that is smaller, and it is needed to unpack. `fast` leaves out the slow coders.
    Raises: ArtifactError for files that are missing, damaged or of no known kind; OutputError when nothing can be written.
    """
    source = Path(source)
    _check_apart(path, source, parent)
    kind, spans = find_spans(source)
    size = source.stat().st_size
    gaps = _gaps(spans, size)
    with _File(source) as file, _Parent(parent) as before:
        about = {"packed": kind, "name": _word(source)}

        def written(again: list[list[Any]]) -> dict[str, int]:
            kept: dict[str, int] = {}
            meta: dict[str, Any] = about | {"gaps": [length for _, length in gaps]} | ({"again": again} if again else {})
            if parent is not None:
                meta |= {"parent": _word(Path(parent)), "differences": kept}
            return write(
                path,
                meta,
                _sections(file, spans, gaps, before, kept, {name for _, name, _ in again}),
                fast=fast,
                matches=not fast,
            )

        again = twins(file.read, spans)
        ledger = written(again)
        if again and size > memory_limit_bytes(sum(ledger.values())):  # more than a reader would believe
            ledger = written([])
        whole = None if fast else _whole(file, size, int(_CLEARLY * sum(ledger.values())) - _ABOUT)
        return ledger if whole is None else write(path, about | {"gaps": [size]}, [whole], matches=True)


def unpack(source: PathLike, path: PathLike, *, parent: PathLike | None = None) -> int:
    """Writes the file that was packed, byte for byte, and gives its size in bytes.

    Raises: ArtifactError when `source` is damaged, holds a network and not a packed file, or the parent is not the one it
    was packed with; OutputError when the file cannot be written.
    """
    _check_apart(path, source, parent)
    with Reader(source) as reader, _Parent(parent) as before:
        gaps, differences, names = _checked(reader, parent)
        rest = b"".join(part.tobytes() for part in reader.pieces(REST)) if REST in reader.entries else b""
        total = sum(reader.entries[name].nbytes for name in names)
        at = done = 0
        with whole_file(path) as temporary, temporary.open("wb") as out:
            for entry, gap in zip([*(reader.entries[name] for name in names), None], gaps, strict=True):
                out.write(rest[at : at + gap])
                at += gap
                for part in _restored(reader, entry, before, differences) if entry is not None else ():
                    say("unpacking", done, total)
                    out.write(part.tobytes())
                    done += part.nbytes
            say("unpacking", total, total)
            size = out.tell()
            out.flush()
            if reader.meta["packed"] == "onnx" or Path(path).suffix == ".onnx":
                _refuse_files_beside(temporary, path)
            return size


def _refuse_files_beside(written: Path, path: PathLike) -> None:
    """Raises ArtifactError when what was written is a graph that makes its runtime read other files."""
    with written.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        refuse_files_beside(data, os.fspath(path))


def spliced(reader: Reader) -> bytes:
    """The whole packed file in memory, for those who only want to open it.

    Raises: ArtifactError as `unpack`; a file that was packed with a parent is refused.
    """
    gaps, _, names = _checked(reader, None)
    rest = reader.array(REST).tobytes() if REST in reader.entries else b""
    parts, at = [], 0
    for name, gap in zip([*names, ""], gaps, strict=True):
        parts.append(rest[at : at + gap])
        at += gap
        if name:
            parts.append(reader.array(name).tobytes())
    return b"".join(parts)


def _check_apart(path: PathLike, *sources: PathLike | None) -> None:
    """Raises OutputError when the file to write is one that is read."""
    for source in sources:
        if source is not None and Path(path).exists() and Path(source).exists() and os.path.samefile(path, source):
            raise OutputError(f"'{path}' is read, so it is not written over; name another file with -o.")


def _word(path: Path) -> str:
    """The name of a file as text that JSON can hold."""
    return path.name.encode(errors="replace").decode()


def _checked(reader: Reader, parent: PathLike | None) -> tuple[list[int], dict[str, int], list[str]]:
    """The gaps, the checksums of the parent's tensors, and the tensor that stands between each two gaps.

    Raises: ArtifactError when the file is no packed one, contradicts itself, or needs a parent that is not given.
    """
    gaps, differences = reader.meta.get("gaps"), reader.meta.get("differences", {})
    if "packed" not in reader.meta or not isinstance(gaps, list):
        raise ArtifactError(
            f"'{reader.path}' holds a network, not a packed file; load it with enxuto.load, or write it with `enxuto export`."
        )
    names = _names(reader)
    whole = all(type(gap) is int and gap >= 0 for gap in gaps) and isinstance(differences, dict) and names is not None
    rest = _rest(sum(gaps)) if whole and any(gaps) else None
    if (
        not whole
        or names is None
        or len(gaps) != len(names) + 1
        or reader.entries.get(REST) != rest
        or set(differences) - set(names)
    ):
        raise ArtifactError(f"'{reader.path}' says of itself what cannot be; it is damaged: copy or pack it again.")
    if differences and parent is None:
        raise ArtifactError(
            f"'{reader.path}' holds differences to '{reader.meta.get('parent')}'; unpack it with that file as --parent."
        )
    return gaps, differences, names


def _names(reader: Reader) -> list[str]:
    """The kept tensor that stands at each place of the file: its own, or the one that it repeats; none where that is a lie."""
    names = [name for name in reader.entries if name != REST]
    kept, total = set(names), sum(entry.nbytes for entry in reader.entries.values())
    again = reader.meta.get("again", [])
    for item in again if isinstance(again, list) else [None]:
        place, first = (item[0], item[2]) if isinstance(item, list) and len(item) == 3 else (-1, "")
        if type(place) is not int or not 0 < place <= len(names) or not isinstance(first, str) or first not in kept:
            return []
        names.insert(place, first)
        total += reader.entries[first].nbytes
        if total > memory_limit_bytes(reader.size):
            return []
    return names


def _rest(nbytes: int) -> Entry:
    """How the bytes between the tensors are kept: many of them as elements of 16 bytes, for longer streams."""
    return (
        Entry(REST, "uint8", (nbytes,), None) if nbytes <= _ONE_STREAM else Entry(REST, "complex128", (-(-nbytes // 16),), None)
    )


def _rest_section(data: bytes) -> Section:
    entry = _rest(len(data))
    array = np.frombuffer(data + bytes(-len(data) % NUMPY[entry.dtype].itemsize), NUMPY[entry.dtype])
    return Section(REST, entry.dtype, entry.shape, None, array)


def _whole(file: _File, size: int, limit: int) -> Section | None:
    """The file as one piece, where matches alone take fewer bytes than `limit`."""
    if size > _LARGEST_WHOLE:
        return None
    data = file.read(0, size)
    letters = np.frombuffer(data, np.uint8)
    if size > _SMALL and not repeating(letters, _MUCH):
        return None
    return _rest_section(data) if len(write_matches(letters)) < limit else None


def _gaps(spans: list[Span], size: int) -> list[tuple[int, int]]:
    """Offset and length of what stands before each span, and behind the last."""
    starts = [0, *(span.offset + span.nbytes for span in spans)]
    ends = [*(span.offset for span in spans), size]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _sections(
    file: _File, spans: list[Span], gaps: list[tuple[int, int]], before: _Parent, kept: dict[str, int], twice: set[str]
) -> Iterator[Section]:
    """The tensors but those that are there `twice`, then what is between them; the names of differences and the parent's
    checksums are put into `kept`."""
    rest = b"".join(file.read(start, length) for start, length in gaps)
    total = sum(span.nbytes for span in spans)
    done = 0
    for span in spans:
        say("packing", done, total)
        done += span.nbytes
        if span.name in twice:
            continue
        own = _Stored(file, span.offset, Entry(span.name, span.dtype, span.shape, None))
        other = before.tensor(own.entry)
        if other is not None and _pays(own, other):
            kept[span.name] = other.checksum
            yield Section(span.name, span.dtype, span.shape, None, _Difference(own, other))
        else:
            yield Section(span.name, span.dtype, span.shape, None, own)
    say("packing", total, total)
    if rest:
        yield _rest_section(rest)


def _restored(reader: Reader, entry: Entry, before: _Parent, differences: dict[str, int]) -> Iterator[Array]:
    other = before.tensor(entry) if entry.name in differences else None
    if entry.name in differences and (other is None or other.checksum != differences[entry.name]):
        raise ArtifactError(
            f"tensor '{entry.name}' of '{before.path}' is not that with which '{reader.path}' was packed; give the same parent."
        )
    at = 0
    for part in reader.pieces(entry.name):
        yield part if other is None else added(part, other.piece(at, at + part.size))
        at += part.size


def _pays(own: _Stored, other: _Stored | _Packed) -> bool:
    """Whether the difference takes fewer bytes than the tensor, judged by a part in its middle."""
    start = max(0, own.entry.count // 2 - _SAMPLE)
    stop = min(own.entry.count, start + _SAMPLE)
    mine = own.piece(start, stop)
    return len(encode_array(difference(mine, other.piece(start, stop)))) < len(encode_array(mine))


class _File:
    """An open file, read at any place by any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read: {error.strerror}; check its permissions.") from error

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on.

        Raises: ArtifactError when the file is shorter than it was.
        """
        parts = []
        while length > 0:
            part = os.pread(self._file.fileno(), min(length, 1 << 30), start)
            if not part:
                raise ArtifactError(f"'{self.path}' got shorter while it was read; try again when nobody writes to it.")
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(parts)


@dataclass(frozen=True)
class _Stored:
    """A tensor that stays in its file until a piece of it is asked for."""

    file: _File
    offset: int
    entry: Entry

    def piece(self, start: int, stop: int) -> Array:
        """The elements from `start` to `stop`."""
        dtype = NUMPY[self.entry.dtype].newbyteorder("<")
        return np.frombuffer(self.file.read(self.offset + start * dtype.itemsize, (stop - start) * dtype.itemsize), dtype)

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of its bytes."""
        check, itemsize = 0, NUMPY[self.entry.dtype].itemsize
        for start in range(0, self.entry.count, _CHUNK):
            stop = min(start + _CHUNK, self.entry.count)
            check = zlib.crc32(self.file.read(self.offset + start * itemsize, (stop - start) * itemsize), check)
        return check


@dataclass(frozen=True)
class _Packed:
    """A tensor of a packed parent, of which a piece is decoded when it is asked for."""

    reader: Reader
    entry: Entry

    def piece(self, start: int, stop: int) -> Array:
        """The elements from `start` to `stop`."""
        return self.reader.elements(self.entry.name, start, stop)

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of its bytes."""
        check = 0
        for part in self.reader.pieces(self.entry.name):
            check = zlib.crc32(part.tobytes(), check)
        return check


@dataclass(frozen=True)
class _Difference:
    """What leads from the parent's tensor to this one."""

    own: _Stored
    other: _Stored | _Packed

    def piece(self, start: int, stop: int) -> Array:
        """The elements from `start` to `stop`."""
        return difference(self.own.piece(start, stop), self.other.piece(start, stop))


class _Parent:
    """The file that differences are taken to: of any kind that can be packed, or packed already; or none."""

    def __init__(self, path: PathLike | None) -> None:
        self.path = path
        self._reader: Reader | None = None
        self._file: _File | None = None
        self._spans: dict[str, Span] = {}
        if path is not None and Path(path).suffix == ".nxt":
            self._reader = Reader(path)
            try:
                _checked(self._reader, None)
            except ArtifactError:
                self._reader.close()
                raise
        elif path is not None:
            self._spans = {span.name: span for span in find_spans(Path(path))[1]}
            self._file = _File(Path(path))

    def __enter__(self) -> _Parent:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._reader, self._file):
            if opened is not None:
                opened.__exit__(None, None, None)

    def tensor(self, entry: Entry) -> _Stored | _Packed | None:
        """The parent's tensor of the same name, dtype and shape."""
        if self._reader is not None:
            same = self._reader.entries.get(entry.name)
            return _Packed(self._reader, same) if same == entry else None
        span = self._spans.get(entry.name)
        if self._file is None or span is None or (span.dtype, span.shape) != (entry.dtype, entry.shape):
            return None
        return _Stored(self._file, span.offset, entry)
