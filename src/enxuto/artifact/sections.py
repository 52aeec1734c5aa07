"""What a .nxt file is written from: tensors, cut into the pieces that streams hold, and small ones put on shelves.

Nothing is coded here; `container` does that, piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enxuto.artifact.index import NUMPY, SHELF, Entry
from enxuto.errors import ArtifactError

_SMALL = 1 << 10  # elements up to which a tensor shares a stream with others
Array = NDArray[Any]


class Elements(Protocol):
    """Elements of a tensor that need not be in memory all at once."""

    def piece(self, start: int, stop: int) -> Array:
        """The elements from `start` to `stop`, flat; called from several threads at a time."""


@dataclass(frozen=True, eq=False)
class Section:
    """One tensor as the file keeps it.

    `dtype` is a numpy name, or "bfloat16", "float8_e4m3fn" or "float8_e5m2", whose bits `array` holds as unsigned
    integers. `symbols` is the number of different codes when `array` holds codes, one per element, as uint8 or uint16;
    else None. `repeats` says that what stood before is tried without a look, where the file may hold it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    symbols: int | None
    array: Array | Elements = field(repr=False)
    repeats: bool = False

    @property
    def entry(self) -> Entry:
        """The section without its elements."""
        return Entry(self.name, self.dtype, self.shape, self.symbols)


Job = tuple[Section, int, int, tuple[int, ...]]


class _Shelves:
    """Small tensors, each put beside others of its dtype whose names end alike: they often hold similar values."""

    def __init__(self) -> None:
        self._rows: list[list[Section]] = []
        self._latest: dict[tuple[str, str], tuple[int, int]] = {}  # the last shelf of its kin, and the elements on it

    def put(self, section: Section) -> int:
        """The number of the shelf where the tensor is now; 0 where it is too large, empty or of codes."""
        count = section.entry.count
        if section.symbols is not None or not 0 < count <= _SMALL:
            return 0
        kin = section.dtype, section.name.rpartition(".")[2]
        number, filled = self._latest.get(kin, (0, SHELF))
        if filled + count > SHELF:
            self._rows.append([])
            number, filled = len(self._rows), 0
        self._latest[kin] = number, filled + count
        self._rows[number - 1].append(replace(section, array=taken(section, 0, count).copy().reshape(section.shape)))
        return number

    def jobs(self) -> Iterator[Job]:
        """What is on each shelf as one piece."""
        for row in self._rows:
            whole = np.concatenate([taken(section, 0, section.entry.count) for section in row])
            repeats = any(section.repeats for section in row)
            yield Section("", row[0].dtype, whole.shape, None, whole, repeats), 0, whole.size, whole.shape


def jobs(sections: Iterable[Section], entries: list[Entry], plain: bool) -> Iterator[Job]:
    """The pieces of all sections, each section checked when its turn comes; their entries are put into `entries`."""
    names: set[str] = set()
    shelves = _Shelves()
    for section in sections:
        _check(section, names)
        shelf = 0 if plain else shelves.put(section)
        entries.append(replace(section.entry, shelf=shelf))
        if not shelf:
            yield from ((section, *piece) for piece in section.entry.pieces())
    yield from shelves.jobs()


def taken(section: Section, start: int, stop: int) -> Array:
    """Elements of a section, flat."""
    array = section.array
    part = array.reshape(-1)[start:stop] if isinstance(array, np.ndarray) else array.piece(start, stop)
    if part.dtype != NUMPY[section.dtype] or part.size != stop - start:
        raise ArtifactError(
            f"tensor '{section.name}' was asked for {stop - start} elements as {NUMPY[section.dtype]}, but gave {part.size} as "
            f"{part.dtype}; give the elements as they are described."
        )
    return part


def _check(section: Section, names: set[str]) -> None:
    section.entry.check()
    array = section.array
    if isinstance(array, np.ndarray) and (array.shape != section.shape or array.dtype != NUMPY[section.dtype]):
        raise ArtifactError(
            f"tensor '{section.name}' is said to be {section.dtype} {section.shape}, but its array is "
            f"{array.dtype} {array.shape}; give the array as it is described."
        )
    if section.name in names:
        raise ArtifactError(f"two tensors are called '{section.name}'; give each its own name.")
    names.add(section.name)
