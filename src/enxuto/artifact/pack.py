"""Any file with tensors in it as a .nxt file, and back, byte for byte: `pack` and `unpack`.

A packed file is the tensors of the original and, as one more tensor, all bytes between them. `unpack` puts both together
again and knows no other format. With a parent, a tensor is kept as its difference to the parent's.
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

from enxuto.artifact.container import Reader, write
from enxuto.artifact.index import NUMPY, Entry
from enxuto.artifact.protobuf import refuse_files_beside
from enxuto.artifact.sections import Section
from enxuto.artifact.spans import REST, Span, find_spans
from enxuto.coding import encode_array
from enxuto.errors import ArtifactError, OutputError
from enxuto.files import whole_file
from enxuto.progress import say

_CHUNK = 1 << 22
_SAMPLE = 1 << 16  # elements by which a difference is weighed against the tensor itself
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
        kept: dict[str, int] = {}
        sections = _sections(file, spans, gaps, before, kept)
        meta: dict[str, Any] = {"packed": kind, "name": _word(source), "gaps": [length for _, length in gaps]}
        if parent is not None:
            meta |= {"parent": _word(Path(parent)), "differences": kept}
        return write(path, meta, sections, fast=fast)


def unpack(source: PathLike, path: PathLike, *, parent: PathLike | None = None) -> int:
    """Writes the file that was packed, byte for byte, and gives its size in bytes.

    Raises: ArtifactError when `source` is damaged, holds a network and not a packed file, or the parent is not the one it
    was packed with; OutputError when the file cannot be written.
    """
    _check_apart(path, source, parent)
    with Reader(source) as reader, _Parent(parent) as before:
        gaps, differences = _checked(reader, parent)
        rest = b"".join(part.tobytes() for part in reader.pieces(REST)) if REST in reader.entries else b""
        total = sum(entry.nbytes for entry in reader.entries.values())
        at = done = 0
        with whole_file(path) as temporary, temporary.open("wb") as out:
            for entry, gap in zip([*(e for e in reader.entries.values() if e.name != REST), None], gaps, strict=True):
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
    gaps, _ = _checked(reader, None)
    rest = reader.array(REST).tobytes() if REST in reader.entries else b""
    parts, at = [], 0
    for name, gap in zip([*(name for name in reader.entries if name != REST), ""], gaps, strict=True):
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


def _checked(reader: Reader, parent: PathLike | None) -> tuple[list[int], dict[str, int]]:
    """The gaps and the checksums of the parent's tensors, when the file is a packed one and the parent is given if needed."""
    gaps, differences = reader.meta.get("gaps"), reader.meta.get("differences", {})
    if "packed" not in reader.meta or not isinstance(gaps, list):
        raise ArtifactError(
            f"'{reader.path}' holds a network, not a packed file; load it with enxuto.load, or write it with `enxuto export`."
        )
    tensors = [name for name in reader.entries if name != REST]
    whole = all(type(gap) is int and gap >= 0 for gap in gaps) and isinstance(differences, dict)
    rest = Entry(REST, "uint8", (sum(gaps),), None) if whole and any(gaps) else None
    if not whole or len(gaps) != len(tensors) + 1 or reader.entries.get(REST) != rest or set(differences) - set(tensors):
        raise ArtifactError(f"'{reader.path}' says of itself what cannot be; it is damaged: copy or pack it again.")
    if differences and parent is None:
        raise ArtifactError(
            f"'{reader.path}' holds differences to '{reader.meta.get('parent')}'; unpack it with that file as --parent."
        )
    return gaps, differences


def _gaps(spans: list[Span], size: int) -> list[tuple[int, int]]:
    """Offset and length of what stands before each span, and behind the last."""
    starts = [0, *(span.offset + span.nbytes for span in spans)]
    ends = [*(span.offset for span in spans), size]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _sections(
    file: _File, spans: list[Span], gaps: list[tuple[int, int]], before: _Parent, kept: dict[str, int]
) -> Iterator[Section]:
    """The tensors, then what is between them; the names of differences and the parent's checksums are put into `kept`."""
    rest = b"".join(file.read(start, length) for start, length in gaps)
    total = sum(span.nbytes for span in spans)
    done = 0
    for span in spans:
        say("packing", done, total)
        done += span.nbytes
        own = _Stored(file, span.offset, Entry(span.name, span.dtype, span.shape, None))
        other = before.tensor(own.entry)
        if other is not None and _pays(own, other):
            kept[span.name] = other.checksum
            yield Section(span.name, span.dtype, span.shape, None, _Difference(own, other))
        else:
            yield Section(span.name, span.dtype, span.shape, None, own)
    say("packing", total, total)
    if rest:
        yield Section(REST, "uint8", (len(rest),), None, np.frombuffer(rest, np.uint8))


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
