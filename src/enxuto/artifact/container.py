"""The .nxt file as bytes: streams, an index behind them, checksums. What the tensors mean is not known here.

Written in one pass, whole or not at all, and the same input gives the same bytes. Reading trusts nothing: every length is
checked before it is used, and no file makes the reader take much more memory than `memory_limit_bytes` says. One tensor
can be read without the others, and a file larger than memory in pieces. See docs/format.md.
"""

from __future__ import annotations

import functools
import os
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from enxuto.artifact.index import BLOCK_BYTES, NUMPY, Entry, blocks, places, read_index, shares, shelves, write_index
from enxuto.artifact.sections import Array, Section, jobs, taken
from enxuto.coding import decode_array, decode_integers, encode_array, encode_integers
from enxuto.coding.bits import read_varint, write_varint
from enxuto.coding.stream import METHODS, unknown
from enxuto.coding.tables import table_bytes
from enxuto.errors import ArtifactError
from enxuto.files import whole_file

MAGIC = b"\x93NXT"  # a first byte above 127 keeps the file from being taken for text
VERSION = 2
HEADER = "header"  # the key, among section names, of all bytes that are no payload
FREE_BYTES = 1 << 26
BYTES_PER_BYTE = 1024
_CHECKSUM_BYTES = 4
_SHELVES = 16  # that a reader keeps decoded
_LONGEST_LENGTH = 9  # bytes of the length of the tail
_WORKERS = max(1, min(8, os.cpu_count() or 1))
_FEW_ELEMENTS = 1 << 16  # below which a thread costs more than it saves
_CHUNK = 1 << 20
Result = TypeVar("Result")


def write(
    path: str | os.PathLike[str],
    meta: Mapping[str, Any],
    sections: Iterable[Section],
    *,
    plain: bool = False,
    fast: bool = False,
    matches: bool = False,
) -> dict[str, int]:
    """Writes the file and gives its bytes by section name, and under "header" all others; they sum to the file's size.

    Sections are taken one by one, and the small ones kept until the end. `plain` leaves the index as it is and gives each
    tensor a stream of its own, for readers with little memory; `fast` leaves out the coders that read a few million symbols a
    second, and `matches` takes in those of what repeats, which devices do not read.
    Raises: ArtifactError when a section contradicts itself, a name occurs twice or `meta` is not JSON; OutputError when
    the file cannot be written.
    """
    entries: list[Entry] = []
    lengths: list[int] = []
    sums: list[int] = []
    with whole_file(path) as temporary, temporary.open("wb") as file:
        start = MAGIC + bytes([VERSION])
        file.write(start)
        size = block = check = 0
        for stream in _in_threads(
            functools.partial(_encode, fast=fast, matches=matches), jobs(sections, entries, plain), _FEW_ELEMENTS
        ):
            file.write(stream)
            lengths.append(len(stream))
            check, block, size = zlib.crc32(stream, check), block + len(stream), size + len(stream)
            if block >= BLOCK_BYTES:
                sums.append(check)
                block = check = 0
        sums += [check] * (block > 0)
        try:
            index = write_index(meta, entries, lengths, plain=plain)
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"meta of '{path}' is not JSON: {error}; use text, finite numbers, lists and dicts.") from error
        tail = index + b"".join(each.to_bytes(_CHECKSUM_BYTES, "little") for each in sums)
        tail += write_varint(len(tail))[::-1]
        whole = len(start) + size + len(tail) + _CHECKSUM_BYTES
        missing = max(0, -(-(sum(entry.nbytes for entry in entries) - FREE_BYTES) // BYTES_PER_BYTE) - whole)
        file.write(bytes(missing) + tail + zlib.crc32(tail, zlib.crc32(start)).to_bytes(_CHECKSUM_BYTES, "little"))
    return _ledger(entries, lengths, whole + missing)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Section]]:
    """The meta and the sections that `write` was given; arrays are fresh, contiguous and writable.

    Raises: ArtifactError when the file is missing, foreign, truncated, altered, of a newer version or lies.
    """
    with Reader(path) as reader:
        reader.check()
        return reader.meta, list(reader.sections())


def sizes(path: str | os.PathLike[str]) -> dict[str, int]:
    """What `write` gave, from the file alone and without decoding a tensor.

    Raises: ArtifactError as `read`, except for damage inside a tensor.
    """
    with Reader(path) as reader:
        return _ledger([*reader.entries.values()], reader.lengths, reader.size)


def tables(path: str | os.PathLike[str]) -> dict[str, int]:
    """The bytes of frequency tables inside the streams of each tensor that has any.

    Raises: ArtifactError as `read`.
    """
    with Reader(path) as reader:
        return {name: count for name, count in reader.tables().items() if count}


def memory_limit_bytes(file_bytes: int) -> int:
    """The bytes of tensors that a file of this size may hold: 64 MiB, and 1 KiB for each of its bytes.

    `write` pads a file that would hold more (only constants of enormous size do), so that the bound refuses none of
    ours.
    """
    return FREE_BYTES + BYTES_PER_BYTE * file_bytes


class Reader:
    """An open .nxt file: its meta and entries, and each tensor when it is asked for.

    Raises: ArtifactError, when it is opened, for a file that is missing, foreign, truncated, altered, of a newer version
    or lies; when a tensor is read, for damage there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        if not isinstance(path, (str, os.PathLike)):
            raise ArtifactError(f"{path!r} is {type(path).__name__}, not the name of a file; name a .nxt file.")
        if not Path(path).is_file():
            kind = "is not a file" if Path(path).exists() else "does not exist"
            raise ArtifactError(f"'{path}' {kind}; name a .nxt file that enxuto wrote.")
        try:
            self._file = Path(path).open("rb")  # noqa: SIM115  closed by close()
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read: {error.strerror}; check its permissions.") from error
        try:
            self._last: tuple[int, bytes] = (-1, b"")
            self.size = os.fstat(self._file.fileno()).st_size
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _open(self) -> None:
        start = self._bytes(0, len(MAGIC) + 1)
        if not start.startswith(MAGIC):
            raise ArtifactError(f"'{self.path}' is no .nxt file: it begins with {start[:4]!r}; name a file that enxuto wrote.")
        least = len(MAGIC) + 5 + _CHECKSUM_BYTES
        if self.size < least:
            raise ArtifactError(f"'{self.path}' ends after {self.size} bytes, a .nxt file has at least {least}; copy it again.")
        if start[-1] != VERSION:
            advice = "upgrade enxuto" if start[-1] > VERSION else "it was never released: write the file again"
            raise ArtifactError(f"'{self.path}' has format version {start[-1]}, this enxuto reads {VERSION}; {advice}.")
        end = self.size - _CHECKSUM_BYTES
        try:
            length, used = read_varint(self._bytes(max(0, end - _LONGEST_LENGTH), end)[::-1], 0)
            first = end - used - length
            if first < len(start):
                raise ArtifactError("its end does not say where its index begins")
            tail = self._bytes(first, end)
            found = zlib.crc32(tail, zlib.crc32(start))
        except ArtifactError as error:
            raise self._damaged("was altered or cut off", error) from error
        if found != int.from_bytes(self._bytes(end, self.size), "little"):
            raise ArtifactError(f"'{self.path}' was altered or cut off: its checksum is wrong; copy or save it again.")
        try:
            self._settle(tail[:length], len(start), first)
        except ArtifactError as error:
            raise self._damaged("contradicts itself", error) from error

    def _settle(self, tail: bytes, start: int, end: int) -> None:
        """Takes the index apart; streams and padding fill the file from `start` to `end`."""
        self.meta, entries, self.lengths, behind = read_index(tail)
        self.entries = {entry.name: entry for entry in entries}
        self._blocks = blocks(self.lengths)
        if len(tail) - behind != _CHECKSUM_BYTES * len(self._blocks):
            raise ArtifactError(f"{len(tail) - behind} bytes are no checksums of {len(self._blocks)} blocks")
        self._sums = np.frombuffer(tail, "<u4", offset=behind)
        self._places = [*accumulate(self.lengths, initial=start)]
        if self._places[-1] > end:
            raise ArtifactError(f"streams of {sum(self.lengths)} bytes do not fit into {end - start}")
        needed = sum(entry.nbytes for entry in entries)
        if needed > memory_limit_bytes(self.size):
            raise ArtifactError(f"tensors of {needed} bytes cannot come from a file of {self.size}")
        self._padding = (self._places[-1], end)
        self._first = places(entries)
        self._shelves = shelves(entries)
        self._shelf = functools.lru_cache(_SHELVES)(self._read_shelf)

    def check(self) -> None:
        """Reads every byte once and compares all checksums, block by block.

        Raises: ArtifactError when the file was altered.
        """
        for number in range(len(self._blocks)):
            self._block(number)
        for start in range(*self._padding, _CHUNK):
            if any(self._bytes(start, min(start + _CHUNK, self._padding[1]))):
                raise ArtifactError(f"'{self.path}' was altered: its padding is not zero; copy or save it again.")

    def sections(self) -> Iterator[Section]:
        """Every tensor, one after the other."""
        for name in self.entries:
            yield self.section(name)

    def section(self, name: str) -> Section:
        """One tensor; its array is fresh, contiguous and writable. No other is read, but for those in its block."""
        entry = self.entries[name]
        return Section(entry.name, entry.dtype, entry.shape, entry.symbols, self.array(name))

    def array(self, name: str) -> Array:
        """The elements of one tensor, in its shape."""
        entry = self.entries[name]
        if entry.streams == 1 or entry.shelf:
            return next(self.pieces(name)).reshape(entry.shape)
        array, at = np.empty(entry.count, NUMPY[entry.dtype]), 0
        for part in self.pieces(name):
            array[at : at + part.size] = part
            at += part.size
        return array.reshape(entry.shape)

    def pieces(self, name: str) -> Iterator[Array]:
        """The elements of one tensor, flat, in pieces of about 4 million; several are decoded at a time."""
        entry, (first, start) = self.entries[name], self._first[name]
        if entry.shelf:
            yield self._shelf(entry.shelf)[start : start + entry.count].copy()
            return
        jobs = ((self._stream(first + number), entry, stop - start) for number, (start, stop, _) in enumerate(entry.pieces()))
        yield from _in_threads(self._decode, jobs, entry.count)

    def elements(self, name: str, start: int, stop: int) -> Array:
        """The elements of one tensor from `start` to `stop`, flat; only the streams that hold them are decoded."""
        entry, (first, _) = self.entries[name], self._first[name]
        if entry.shelf:
            return next(self.pieces(name))[start:stop]
        parts = [
            self._decode(self._stream(first + number), entry, end - begin)[max(0, start - begin) : stop - begin]
            for number, (begin, end, _) in enumerate(entry.pieces())
            if begin < stop and start < end
        ]
        return np.concatenate([np.empty(0, NUMPY[entry.dtype]), *parts])

    def bytes_of(self, entry: Entry) -> int:
        """The bytes of the streams of one tensor, and its share of a stream that it shares."""
        return self._shares[entry.name]

    @functools.cached_property
    def _shares(self) -> dict[str, int]:
        return shares([*self.entries.values()], self.lengths)

    def tables(self) -> dict[str, int]:
        """The bytes of frequency tables inside the streams, by tensor."""
        entries = [*self.entries.values()]
        found: list[int] = []
        for entry in [*entries, *self._shelves]:
            dtype = NUMPY[entry.dtype]
            symbols = entry.symbols or (2 if dtype == np.bool_ else 256)
            for _ in range(entry.streams):
                found.append(table_bytes(self._stream(len(found)), symbols, min(8, dtype.itemsize)))
        return shares(entries, found)

    def methods(self, entry: Entry) -> str:
        """The names of the methods by which the streams of one tensor are coded.

        Raises: ArtifactError when a stream names none.
        """
        first, _ = self._first[entry.name]
        used = [self._stream(number)[0] for number in range(first, first + (1 if entry.shelf else entry.streams))]
        if strange := [method for method in used if method >= len(METHODS)]:
            raise self._damaged(f"is damaged in tensor '{entry.name}'", unknown(strange[0], "any kind"))
        return ", ".join(dict.fromkeys(METHODS[method] for method in used))

    def _read_shelf(self, number: int) -> Array:
        """What lies on one shelf."""
        shelf = self._shelves[number - 1]
        return self._decode(self._stream(len(self.lengths) - len(self._shelves) + number - 1), shelf, shelf.count)

    def _decode(self, stream: bytes, entry: Entry, count: int) -> Array:
        dtype = NUMPY[entry.dtype]
        try:
            if entry.symbols is None:
                return decode_array(stream, dtype, (count,))
            return decode_integers(stream, count, entry.symbols).astype(dtype, copy=False)
        except ArtifactError as error:
            raise self._damaged(f"is damaged in tensor '{entry.name}'", error) from error

    def _stream(self, number: int) -> bytes:
        block = bisect_right(self._blocks, number, key=lambda pair: pair[0]) - 1
        last = self._last
        if last[0] != block:
            last = self._last = (block, self._block(block))  # one name, for threads that read other blocks meanwhile
        start = self._places[self._blocks[block][0]]
        return last[1][self._places[number] - start : self._places[number + 1] - start]

    def _block(self, number: int) -> bytes:
        """The bytes of one block, found right."""
        first, last = self._blocks[number]
        data = self._bytes(self._places[first], self._places[last])
        if zlib.crc32(data) != self._sums[number]:
            raise ArtifactError(f"'{self.path}' was altered: the checksum of its block {number} is wrong; copy or save it again.")
        return data

    def _bytes(self, start: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - start, start)

    def _damaged(self, what: str, error: ArtifactError) -> ArtifactError:
        reason = str(error).removesuffix("; the file is damaged.")
        return ArtifactError(f"'{self.path}' {what}: {reason}; copy or save it again.")


def _encode(section: Section, start: int, stop: int, shape: tuple[int, ...], *, fast: bool, matches: bool) -> bytes:
    part = taken(section, start, stop).reshape(shape)
    if section.symbols is None:
        return encode_array(part, fast=fast, matches="always" if matches and section.repeats else matches)
    return encode_integers(part, section.symbols, fast=fast)


def _in_threads(work: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], elements: int) -> Iterator[Result]:
    """What `work` makes of each job, in their order, with a few under way at a time."""
    if elements < _FEW_ELEMENTS or _WORKERS == 1:
        yield from (work(*job) for job in jobs)
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        ahead: deque[Future[Result]] = deque()
        for job in jobs:
            ahead.append(pool.submit(work, *job))
            if len(ahead) > _WORKERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _ledger(entries: Sequence[Entry], lengths: Sequence[int], file_bytes: int) -> dict[str, int]:
    """Bytes by name; a tensor that is itself called "header" is counted with the header."""
    by_name = shares(entries, lengths)
    return by_name | {HEADER: file_bytes - sum(lengths) + by_name.get(HEADER, 0)}
