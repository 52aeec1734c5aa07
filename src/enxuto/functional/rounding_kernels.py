"""The loops of rounding with feedback, compiled: one column after the other, and then each value once more.

A value whose scale is 0 stays. Values of a grid are whole multiples of a scale up to `largest` of them, plus or minus the scale
where `largest` is 0, or ascending `entries` where there are any.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from enxuto.functional.hot import hot


@numba.njit(inline="always")
def _nearest(target: Any, scale: Any, largest: Any, entries: Any) -> Any:
    """The value of the grid that is nearest."""
    if entries.size:
        low, high = 0, entries.size - 1
        while low < high:
            middle = (low + high) // 2
            if 2.0 * target > np.float64(entries[middle]) + np.float64(entries[middle + 1]):
                low = middle + 1
            else:
                high = middle
        return entries[low]
    if largest == 0:
        return scale if target >= 0 else -scale
    return np.float32(min(max(np.rint(target / scale), -largest), largest)) * scale


@hot
def round_block(values: Any, asked: Any, errors: Any, ratio: Any, scales: Any, start: int, largest: int, entries: Any) -> None:
    """Rounds the columns of a block from `start` on; errors of blocks before are in `asked`, those within by `ratio`.

    Shapes: values, errors and scales float32 [rows, in]; asked [rows, block]; ratio [block, block]; entries [any].
    """
    for row in range(len(values)):
        for column in range(start, start + len(ratio)):
            target = values[row, column] + asked[row, column - start]
            for before in range(start, column):
                target += errors[row, before] * ratio[before - start, column - start]
            rounded = values[row, column]
            if scales[row, column] != 0:
                rounded = _nearest(target, scales[row, column], largest, entries)
            errors[row, column] = values[row, column] - rounded
            values[row, column] = rounded


@hot
def descend(made: Any, pull: Any, square: Any, scales: Any, largest: int, entries: Any, sweeps: int) -> None:
    """Moves each value to the best of the grid while the others of its row stay, the last column first, until none moves.

    `pull` is the error of each row times `square`, and is kept so.
    Shapes: made, pull and scales float32 [rows, in]; square [in, in]; entries [any].
    """
    columns = made.shape[1]
    for row in range(len(made)):
        for _ in range(sweeps):
            still = True
            for back in range(columns):
                column = columns - 1 - back
                curve = square[column, column]
                if scales[row, column] == 0 or curve <= 0:
                    continue
                held = made[row, column]
                best = _nearest(held - pull[row, column] / curve, scales[row, column], largest, entries)
                moved = best - held
                if moved != 0 and moved * (2 * pull[row, column] + moved * curve) < 0:
                    made[row, column] = best
                    for other in range(columns):
                        pull[row, other] += moved * square[column, other]
                    still = False
            if still:
                break
