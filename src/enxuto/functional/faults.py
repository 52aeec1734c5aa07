"""Figures that tell where few bits or few digits hurt: channels far larger than others, rows with a peak, neighbours outdone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor


def largest_beside(sizes: Tensor) -> tuple[int, float]:
    """The place of the largest of some sizes, and how many times the middle one of those that are not zero it is.

    Shapes: [channels], nothing negative. 0 and 1 where all are zero.
    >>> largest_beside(torch.tensor([1.0, 0.0, 30.0, 3.0]))
    (2, 10.0)
    """
    alive = sizes[sizes > 0]
    if not len(alive):
        return 0, 1.0
    return int(sizes.argmax()), float(sizes.max() / alive.double().median())


def peak(rows: Tensor) -> tuple[int, float]:
    """The row whose largest magnitude is most times its root mean square, and how many times. Rows of zeros have 1.

    Shapes: [rows, values].
    >>> peak(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]]))
    (1, 2.0)
    """
    largest = torch.linalg.vector_norm(rows.float(), torch.inf, dim=1).double()
    scaled = rows.double() / largest.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    times = torch.where(largest > 0, scaled.square().mean(1).rsqrt(), 1.0)
    return int(times.argmax()), float(times.max())


def beyond_neighbours(values: Sequence[float], reach: int = 2) -> list[float]:
    """How many times each value is the middle of those beside it, `reach` on either side; 1 where these are zero.

    >>> beyond_neighbours([2.0, 2.0, 8.0, 2.0])
    [0.4, 1.0, 4.0, 0.4]
    """
    found = []
    for place, value in enumerate(values):
        beside = [*values[max(0, place - reach) : place], *values[place + 1 : place + 1 + reach]]
        middle = statistics.median(beside) if beside else 0.0
        found.append(value / middle if middle > 0 else 1.0)
    return found
