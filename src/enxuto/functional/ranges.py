"""Which range of values an 8-bit grid should cover: all that were seen, nearly all, or what costs least squared error.

Values are counted in bins of equal width from -limit to limit. A value that is zero is exact on every grid and is not counted.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 0.9999  # of the values that a percentile keeps, half of the rest cut on either side
CUTS = 128  # ends that are tried on either side of zero


def percentile_range(counts: Tensor, limit: float, share: float = SHARE) -> tuple[float, float]:
    """The range that holds this share of the values. Shapes: counts [bins].

    >>> percentile_range(torch.tensor([0.0, 1, 98, 1]), limit=2.0, share=0.98)
    (0.0, 1.0)
    """
    below = counts.cumsum(0) / counts.sum().clamp_min(1e-30)
    edges = _edges(counts, limit)
    cut = (1 - share) / 2
    first = int((below <= cut * (1 + 1e-9)).sum())
    last = int((below < (1 - cut) * (1 - 1e-9)).sum())
    return float(edges[first]), float(edges[min(last, len(counts) - 1) + 1])


def least_squares_range(counts: Tensor, limit: float, low: float, high: float, bits: int = 8) -> tuple[float, float]:
    """The range within [low, high] and around zero of least squared error: values beyond it are cut, those within it rounded.

    Shapes: counts [bins]. Both ends are searched at once; a value within is taken to lie anywhere between two codes.
    Source: Banner, Nahshan, Soudry 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
    eq. 5. Deviation: counted values in place of a Laplace distribution, and each end for itself.
    """
    shares = torch.linspace(0, 1, CUTS + 1, dtype=torch.float64)
    lows, highs = shares * min(low, 0.0), shares * max(high, 0.0)
    cut = cut_error(counts, limit, lows, above=False)[:, None] + cut_error(counts, limit, highs, above=True)[None, :]
    step = (highs[None, :] - lows[:, None]) / (2**bits - 1)
    best = int((cut + step.square() / 12 * counts.sum()).argmin())
    return float(lows[best // len(highs)]), float(highs[best % len(highs)])


def cut_error(counts: Tensor, limit: float, ends: Tensor, *, above: bool) -> Tensor:
    """The sum of squares by which values lie above (or below) each end. Shapes: counts [bins], ends [n] -> float64 [n]."""
    edges = _edges(counts, limit)
    middles = (edges[1:] + edges[:-1]) / 2
    far = middles[None, :] - ends[:, None].double()
    far = far.clamp_min(0) if above else far.clamp_max(0)
    return far.square() @ counts.double()


def _edges(counts: Tensor, limit: float) -> Tensor:
    return torch.linspace(-limit, limit, len(counts) + 1, dtype=torch.float64)
