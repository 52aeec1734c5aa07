"""What chance adds to a drop measured on a validation set, and how large a set would have to be.

The rule is the cheapest of those whose promise holds in nine of ten simulated searches (bench/search_margin.py, ADR 10).
"""

from __future__ import annotations

import math

from torch import Tensor

MARGIN = 1.64
"""Standard errors that a drop must stay below its limit. The best of many recipes on one validation set is flattered by it."""


def standard_error(before: Tensor, after: Tensor) -> float:
    """Of the mean difference, paired over the samples; 0 for a single number, which has no spread.

    Shapes: [samples] or [] twice.
    """
    if before.ndim == 0 or before.numel() < 2:
        return 0.0
    return float((after - before).double().std() / math.sqrt(before.numel()))


def samples_needed(samples: int, drop: float, error: float, allowed: float) -> int | None:
    """The validation samples with which this drop would have been accepted, the error falling as their root.

    None when no number of samples would do, for more than is allowed was lost, or where there are no samples.
    >>> samples_needed(10_000, drop=0.0025, error=0.0025, allowed=0.005)
    26896
    """
    if samples < 2 or drop >= allowed:
        return None
    return math.ceil(samples * (MARGIN * error / (allowed - drop)) ** 2 - 1e-6)
