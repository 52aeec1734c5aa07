"""Any file with tensors in it as a .nxt file, and back, byte for byte: `pack` and `unpack`.

A packed file is the tensors of the original and, as one more tensor, all bytes between them. `unpack` puts both together
again and knows no other format. With a parent, a tensor is kept as its difference to the parent's; one that is there
twice is kept once. Where the file as it stands is smaller by matches alone, it is kept so.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.artifact.container import Reader, memory_limit_bytes, write
from enxuto.artifact.index import Entry
from enxuto.artifact.packed import SMALL, checked, rest_section
from enxuto.artifact.parents import File, Packed, Parent, PathLike, Stored
from enxuto.artifact.protobuf import refuse_files_beside
from enxuto.artifact.sections import Section, taken
from enxuto.artifact.spans import REST, Span, find_spans
from enxuto.artifact.twins import twins
from enxuto.coding import encode_array
from enxuto.coding.differences import added, difference
from enxuto.coding.repeats import repeating, write_matches
from enxuto.errors import ArtifactError, OutputError
from enxuto.files import whole_file
from enxuto.progress import say

_SAMPLE = 1 << 16  # elements by which a difference is weighed against the tensor itself
_LARGEST_WHOLE = 1 << 26  # bytes of a file that is tried whole where it repeats itself; a small one always
_MUCH = 0.1  # of the passages of a file seen before, from which on it may be smaller as one piece
_ABOUT = 160  # bytes that a file needs beside what it holds, at most
_CLEARLY = 0.98  # of the bytes otherwise, which the file as one piece must reach: its tensors cannot be read one by one
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
    with File(source) as file, Parent(parent) as before:
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
    with Reader(source) as reader, Parent(parent) as before:
        gaps, differences, names = checked(reader, parent)
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
    if not written.stat().st_size:
        raise ArtifactError(f"'{path}' would be empty, which no ONNX file is; the packed file is damaged: copy or pack it again.")
    with written.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        refuse_files_beside(data, os.fspath(path))


def _check_apart(path: PathLike, *sources: PathLike | None) -> None:
    """Raises OutputError when the file to write is one that is read."""
    for source in sources:
        if source is not None and Path(path).exists() and Path(source).exists() and os.path.samefile(path, source):
            raise OutputError(f"'{path}' is read, so it is not written over; name another file with -o.")


def _word(path: Path) -> str:
    """The name of a file as text that JSON can hold."""
    return path.name.encode(errors="replace").decode()


def _whole(file: File, size: int, limit: int) -> Section | None:
    """The file as one piece, where matches alone take fewer bytes than `limit`."""
    if size > _LARGEST_WHOLE:
        return None
    data = file.read(0, size)
    if size > SMALL and not repeating(np.frombuffer(data, np.uint8), _MUCH):
        return None
    section = rest_section(data, repeats=True)
    return section if len(write_matches(taken(section, 0, section.entry.count))) < limit else None


def _gaps(spans: list[Span], size: int) -> list[tuple[int, int]]:
    """Offset and length of what stands before each span, and behind the last."""
    starts = [0, *(span.offset + span.nbytes for span in spans)]
    ends = [*(span.offset for span in spans), size]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _sections(
    file: File, spans: list[Span], gaps: list[tuple[int, int]], before: Parent, kept: dict[str, int], twice: set[str]
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
        own = Stored(file, span.offset, Entry(span.name, span.dtype, span.shape, None))
        other = before.tensor(own.entry)
        if other is not None and other.entry.shape == span.shape and _pays(own, other):
            kept[span.name] = other.checksum
            yield Section(span.name, span.dtype, span.shape, None, _Difference(own, other))
        else:
            yield Section(span.name, span.dtype, span.shape, None, own)
    say("packing", total, total)
    if rest:
        yield rest_section(rest, repeats=len(rest) <= SMALL)


def _restored(reader: Reader, entry: Entry, before: Parent, differences: dict[str, int]) -> Iterator[Array]:
    other = before.tensor(entry) if entry.name in differences else None
    if entry.name in differences and (other is None or other.checksum != differences[entry.name]):
        raise ArtifactError(
            f"tensor '{entry.name}' of '{before.path}' is not that with which '{reader.path}' was packed; give the same parent."
        )
    at = 0
    for part in reader.pieces(entry.name):
        yield part if other is None else added(part, other.piece(at, at + part.size))
        at += part.size


def _pays(own: Stored, other: Stored | Packed) -> bool:
    """Whether the difference takes fewer bytes than the tensor, judged by a part in its middle."""
    start = max(0, own.entry.count // 2 - _SAMPLE)
    stop = min(own.entry.count, start + _SAMPLE)
    mine = own.piece(start, stop)
    return len(encode_array(difference(mine, other.piece(start, stop)))) < len(encode_array(mine))


@dataclass(frozen=True)
class _Difference:
    """What leads from the parent's tensor to this one."""

    own: Stored
    other: Stored | Packed

    def piece(self, start: int, stop: int) -> Array:
        """The elements from `start` to `stop`."""
        return difference(self.own.piece(start, stop), self.other.piece(start, stop))
