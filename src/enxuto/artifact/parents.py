"""Files with tensors as they are read to be packed: the file itself, and the parent that differences are taken to."""

from __future__ import annotations

import math
import os
import tempfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.artifact.container import Reader
from enxuto.artifact.index import NUMPY, Entry
from enxuto.artifact.packed import checked, firsts, spliced
from enxuto.artifact.spans import Span, find_spans
from enxuto.errors import ArtifactError

_CHUNK = 1 << 22
PathLike = str | os.PathLike[str]
Array = NDArray[Any]


class File:
    """An open file, read at any place by any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read: {error.strerror}; check its permissions.") from error

    def __enter__(self) -> File:
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
class Stored:
    """A tensor that stays in its file until a piece of it is asked for."""

    file: File
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
class Packed:
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


class Parent:
    """The file that differences are taken to: of any kind that can be packed, or packed already; or none."""

    def __init__(self, path: PathLike | None) -> None:
        self.path = path
        self._stack = ExitStack()
        self._reader: Reader | None = None
        self._file: File | None = None
        self._spans: dict[str, Span] = {}
        self._firsts: dict[str, str] = {}
        if path is None:
            return
        with self._stack:  # closed here unless all went well
            self._open(Path(path))
            self._stack = self._stack.pop_all()

    def _open(self, path: Path) -> None:
        if path.suffix == ".nxt":
            reader = self._stack.enter_context(Reader(path))
            _, _, names = checked(reader, None)
            if names:
                self._reader, self._firsts = reader, firsts(reader)
                return
            path = self._beside(reader)  # kept as one piece: its tensors are found when it is out
        self._spans = {span.name: span for span in find_spans(path)[1]}
        self._file = self._stack.enter_context(File(path))

    def _beside(self, reader: Reader) -> Path:
        """What was packed, in a folder that goes when this closes."""
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / ("parent.onnx" if reader.meta["packed"] == "onnx" else "parent")
        path.write_bytes(spliced(reader))
        return path

    def __enter__(self) -> Parent:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tensor(self, entry: Entry) -> Stored | Packed | None:
        """The parent's tensor of the same name, dtype and number of elements; of one that is there twice, its first."""
        if self._reader is not None:
            same = self._reader.entries.get(self._firsts.get(entry.name, entry.name))
            return Packed(self._reader, same) if same and (same.dtype, same.count) == (entry.dtype, entry.count) else None
        span = self._spans.get(entry.name)
        if self._file is None or span is None or (span.dtype, math.prod(span.shape)) != (entry.dtype, entry.count):
            return None
        return Stored(self._file, span.offset, replace(entry, shape=span.shape))
