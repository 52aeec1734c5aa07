"""Arrays whose values repeat: few different ones, or passages that stood before. Trained weights have neither; filter banks,
networks rounded but kept as floats, and tied tensors do, and no coder of single bytes sees it.

Both are tried only where a part of the array shows that they may pay.
"""

from __future__ import annotations

import lzma
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Data
from enxuto.errors import ArtifactError

MAX_VALUES = 1 << 16  # as many as there may be symbols
_SMALLEST = 256  # bytes below which nothing is tried
_PART = 1 << 16  # elements that are looked at, in each of _PARTS places
_PARTS = 16
_WINDOW = 16  # bytes of a passage
_KEPT = 32  # one passage in so many is remembered, chosen by what it says, so that it is chosen again elsewhere
_OFTEN = 0.004  # of the passages seen before, from which on matches may pay
_SAMPLE_BYTES = 1 << 18  # by which a setting is chosen
_FEW = 0.5  # different values for each element, up to which a table of them may pay
_LARGEST_WINDOW = 1 << 26
_FARTHEST = 1 << 25  # bytes back that all threads that write look together, which takes eleven times as much memory
_SETTINGS = ((3, 0, 2), (1, 2, 2))  # bits of literal context, of literal place and of place, of LZMA: texts, and words of 4 bytes


class _Room:
    """So many bytes to look back, which threads share: one waits until there are as many left as it wants."""

    def __init__(self, free: int) -> None:
        self.free, self.changed = free, threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Within the block `size` bytes of the room are in use."""
        with self.changed:
            self.changed.wait_for(lambda: size <= self.free)
            self.free -= size
        try:
            yield
        finally:
            with self.changed:
                self.free += size
                self.changed.notify_all()


_ROOM = _Room(_FARTHEST)


def repeating(values: NDArray[Any], often: float = _OFTEN) -> bool:
    """True when passages of 16 bytes are there a second time, `often` of all. Shapes: values [count] of unsigned integers."""
    from enxuto.coding.kernels import passages

    if values.nbytes < _SMALLEST:
        return False
    step = max(_PART, values.size // _PARTS)
    seen = np.concatenate(
        [
            passages(
                values[start : start + _PART], max(1, _WINDOW // values.dtype.itemsize), min(_KEPT, 1 + values.size // _PART)
            )
            for start in range(0, values.size, step)
        ]
    )
    return seen.size > 0 and 1 - np.unique(seen).size / seen.size > often


def table_of(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint16]] | None:
    """The different values in ascending order and the place of each element among them; None when they are many.

    Shapes: values [count] -> table [symbols], codes [count].
    """
    if values.nbytes < _SMALLEST:
        return None
    sample = values[:: max(1, values.size // _PART)]
    sample = sample[sample != 0]  # zeros alone are better told apart (a stream of method sparse)
    if np.unique(sample).size > _FEW * sample.size:
        return None
    ordered = np.sort(values)
    table = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    if table.size > min(MAX_VALUES, _FEW * values.size):
        return None
    codes = np.empty(values.size, np.uint16)
    for start in range(0, values.size, _PART):  # in pieces, as places are wide numbers
        codes[start : start + _PART] = np.searchsorted(table, values[start : start + _PART])
    return table, codes


def write_matches(values: NDArray[Any]) -> bytes:
    """The bytes of the values by LZMA: which setting, the better one on a part in the middle, then its raw stream.

    Shapes: values [...].
    """
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    start = max(0, len(data) - _SAMPLE_BYTES) // 2 // 8 * 8
    part = data[start : start + _SAMPLE_BYTES]
    setting = min(range(len(_SETTINGS)), key=lambda number: len(_compressed(part, number)))
    return bytes([setting]) + _compressed(data, setting)


def read_matches(body: Data, nbytes: int) -> bytes:
    """The bytes that `write_matches` wrote; never more memory than twice of them.

    Raises: ArtifactError when they are not so many, or the stream is damaged.
    """
    if not len(body) or body[0] >= len(_SETTINGS):
        raise ArtifactError(f"matches of {len(body)} bytes name no setting; the file is damaged.")
    reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(body[0], nbytes))
    try:
        found = reader.decompress(bytes(body[1:]), max_length=nbytes)
        while len(found) < nbytes and not reader.eof and not reader.needs_input:
            found += reader.decompress(b"", max_length=nbytes - len(found))
        more = b"" if reader.eof else reader.decompress(b"", max_length=1)
    except lzma.LZMAError as error:
        raise ArtifactError(f"matches cannot be read ({error}); the file is damaged.") from error
    if len(found) != nbytes or more or not reader.eof or reader.unused_data:
        raise ArtifactError(f"matches do not give {nbytes} bytes; the file is damaged.")
    return found


def _compressed(data: Data, setting: int) -> bytes:
    filters = _filters(setting, min(len(data), _FARTHEST))
    with _ROOM.taken(int(filters[0]["dict_size"])):
        return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


def _filters(setting: int, nbytes: int) -> list[dict[str, int]]:
    context, literal, place = _SETTINGS[setting]
    window = min(_LARGEST_WINDOW, 1 << max(12, (nbytes - 1).bit_length()))
    return [
        {
            "id": lzma.FILTER_LZMA1,
            "preset": 9,
            "dict_size": window,
            "lc": context,
            "lp": literal,
            "pb": place,
        }
    ]
