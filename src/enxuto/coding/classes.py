"""Rows (or columns) in a few classes, each coded under a model of its own: channels differ in scale and in what was pruned.

The classes are found by how many bits a row takes under the model of each (k-means with code lengths for distances). Costs are
whole numbers, so that the same codes give the same classes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from enxuto.coding import simple
from enxuto.coding.bits import Codes, Data, read_varint, write_varint
from enxuto.coding.stream import read_parts, write_parts
from enxuto.errors import ArtifactError

MAX_CLASSES = 16
_ROUNDS = 6
LARGE = 1 << 19  # codes of a tensor for which a quarter of the classes do
_SEEN, _LEAST_SEEN = 1 << 16, 64  # codes of a tensor, and at least of a line, that are looked at to find the classes
_MOST_COUNTS = 1 << 23  # of rows times symbols, which are held in memory
_LEAST_CODES = 1 << 12  # of a tensor, below which tables cost more than they gain
_TABLE_BYTES = 48  # a further class costs: states, lengths and a table of few symbols
_GAIN = 0.003  # of the bytes without classes: less is not worth the second reading


def encode(codes: Codes, stride: int, symbols: int, budget: float) -> Iterator[bytes]:
    """The codes by classes of rows, of columns, or neither, where that looks smaller than `budget` bytes.

    Shapes: codes [rows * stride].
    """
    matrix = codes.reshape(-1, stride)
    for axis, lines in enumerate((matrix, matrix.T)):
        found = _classes(matrix, axis, symbols, budget) if codes.size >= _LEAST_CODES else None
        if found is not None:
            ends = np.bincount(found).cumsum() * lines.shape[1]
            ordered = np.take(lines, np.argsort(found, kind="stable"), axis=0).reshape(-1)
            streams = [simple.encode(part, symbols) for part in np.split(ordered, ends[:-1])]
            head = write_varint(2 * stride + axis) + bytes([len(streams)])
            yield write_parts([simple.encode(found, len(streams)), *streams], head)
            if codes.size >= LARGE:
                return  # columns may be better, but to look costs as much as to code


def decode(data: Data, count: int, symbols: int) -> Codes:
    """The codes that `encode` wrote.

    Raises: ArtifactError when the classes do not fit `count` codes.
    """
    first, at = read_varint(data, 0)
    stride, axis = divmod(first, 2)
    classes = data[at] if at < len(data) else 0
    if not 1 <= stride <= count or count % stride or not 1 < classes <= MAX_CLASSES:
        raise ArtifactError(f"{count} codes cannot be {classes} classes of lines of {stride}; the file is damaged.")
    codes: Codes = np.empty(count, np.uint8 if symbols <= 256 else np.uint16)
    matrix = codes.reshape(-1, stride)
    lines = matrix.T if axis else matrix
    parts = read_parts(data, at + 1, classes + 1)
    found = simple.decode(parts[0], lines.shape[0], classes)
    for each, part in enumerate(parts[1:]):
        chosen = found == each
        size = int(chosen.sum()) * lines.shape[1]
        lines[chosen] = simple.decode(part, size, symbols).reshape(-1, lines.shape[1])
    return codes


def _classes(matrix: Codes, axis: int, symbols: int, budget: float) -> NDArray[np.uint8] | None:
    """The class of each row (or column, for axis 1), numbered from 0 without a gap; None where classes promise too little."""
    from enxuto.coding.class_kernels import class_bits, line_counts

    rows, columns = matrix.shape[axis], matrix.shape[1 - axis]
    if rows < 8 or columns < 8 or rows * symbols > _MOST_COUNTS:
        return None
    step = max(1, columns // max(_LEAST_SEEN, _SEEN // rows))
    counts = line_counts(matrix, axis, 0, step, symbols)
    start = _quantiles(counts, min(MAX_CLASSES if matrix.size < LARGE else MAX_CLASSES // 4, rows // 2))
    together = np.zeros(rows, np.uint8)
    if budget < math.inf and class_bits(counts, start // 2) > (1 - _GAIN) * class_bits(counts, together):
        return None
    found = _clustered(counts, start)
    # classes always suit the codes they were found with: where those are only a part, others must agree
    judged = counts if step == 1 else line_counts(matrix, axis, step // 2, step, symbols)
    gain = class_bits(judged, together) - class_bits(judged, found)
    number, scale = int(found.max()) + 1, matrix.size / max(1.0, judged.sum())
    tables = number * (_TABLE_BYTES + counts.shape[1] / 2) + rows * math.log2(number) / 8
    worth = number > 1 and gain * scale / 8 > tables + _GAIN * budget
    return found if worth or (number > 1 and budget == math.inf) else None


def _quantiles(counts: NDArray[np.float64], number: int) -> NDArray[np.int64]:
    """As many classes of equal size, by the bits a code of the line takes under the model of all."""
    from enxuto.coding.class_kernels import class_prices

    each = (counts @ class_prices(counts.sum(axis=0, keepdims=True))[0]) / np.maximum(counts.sum(axis=1), 1)
    found = np.empty(len(counts), np.int64)
    found[np.argsort(each, kind="stable")] = np.arange(len(counts)) * number // len(counts)
    return found


def _clustered(counts: NDArray[np.float64], found: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each line in the class whose model suits it best, a few times over."""
    from enxuto.coding.class_kernels import class_prices, class_sums

    for _ in range(_ROUNDS):
        better = (counts @ class_prices(class_sums(counts, found)).T).argmin(axis=1)
        if (better == found).all():
            break
        found = better
    return np.unique(found, return_inverse=True)[1].astype(np.uint8)
