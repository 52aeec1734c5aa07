"""The loops over the counts of lines, by which `classes` are found; compiled at first use, like `kernels`.

Counts and prices are whole numbers below 2**53, so that their sums are exact in any order and on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from enxuto.functional.hot import hot


@hot
def line_counts(matrix: Any, axis: int, first: int, step: int, symbols: int) -> Any:
    """How often each row (or column, for axis 1) has each of the symbols that occur at all, in every `step`th place.

    Shapes: matrix [rows, columns] -> [lines, occurring].
    """
    rows, columns = matrix.shape
    down, across = (1, step) if axis == 0 else (step, 1)
    row, column = (0, first) if axis == 0 else (first, 0)
    place = np.full(symbols, -1, np.int32)
    for i in range(row, rows, down):
        for j in range(column, columns, across):
            place[matrix[i, j]] = 0
    used = 0
    for symbol in range(symbols):
        if place[symbol] == 0:
            place[symbol] = used
            used += 1
    counts = np.zeros((matrix.shape[axis], used), np.float64)
    for i in range(row, rows, down):
        for j in range(column, columns, across):
            counts[j if axis else i, place[matrix[i, j]]] += 1
    return counts


@hot
def class_sums(counts: Any, found: Any) -> Any:
    """The counts of each class together. Shapes: counts [lines, symbols], found [lines] -> [classes, symbols]."""
    sums = np.zeros((found.max() + 1, counts.shape[1]))
    for line in range(found.size):
        for symbol in range(counts.shape[1]):
            sums[found[line], symbol] += counts[line, symbol]
    return sums


@hot
def class_prices(sums: Any) -> Any:
    """What each symbol costs in each class, in whole 256ths of a bit. Shapes: sums [classes, symbols] -> the same."""
    prices = np.empty_like(sums)
    for each in range(sums.shape[0]):
        total = (sums[each] + 0.5).sum()
        for symbol in range(sums.shape[1]):
            prices[each, symbol] = np.rint(256 * np.log2(total / (sums[each, symbol] + 0.5)))
    return prices


@hot
def class_bits(counts: Any, found: Any) -> float:
    """What all codes take, each under the model of its class."""
    sums = class_sums(counts, found)
    return (sums * class_prices(sums)).sum() / 256
