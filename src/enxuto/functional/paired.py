"""Two networks on the same samples: how far mean and spread of each channel of a layer moved from the one to the other.

Samples are paired: what both networks share, the samples themselves, takes no part in the difference, nor in its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONSTANT = 1e-12  # of a layer's mean square: a channel of less variance counts as constant
FAINT = 1e-3  # of a layer's spread, or of a channel's mean: no shift is measured in smaller units
MOST = math.log(1e3)  # how far the logarithm of a variance moves at most: a channel that is all but gone is not blown up
SAME = 1e-4  # spreads: what moved by less is the same number, computed in another order
LEAST = 3  # samples; two have one difference alone
CAUTION = 4  # how the doubt about errors grows with few values; measured: bench/repair.py


def row_moments(values: Tensor, axis: int) -> Tensor:
    """The mean and the mean square of each channel in each sample; values without an axis for samples are one sample.

    Shapes: [samples, ...] with channels on `axis` -> float64 [2, samples, channels].
    >>> row_moments(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=1)[1]
    tensor([[ 1.,  4.],
            [ 9., 16.]], dtype=torch.float64)
    """
    axis %= values.ndim
    if axis == 0:
        values, axis = values[None], 1
    rows = values.movedim(axis, -1)
    rows = rows.flatten(1, -2) if rows.ndim > 2 else rows[:, None]
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    variance, mean = torch.var_mean(rows, 1, correction=0)
    if not bool(torch.isfinite(variance).all()):  # the squares are too large for 32 bits
        variance, mean = torch.var_mean(rows.double(), 1, correction=0)
    mean = mean.double()
    return torch.stack((mean, variance.double() + mean.square()))


@dataclass(frozen=True, eq=False)
class Moved:
    """What the second network did to a layer, as far as the samples show it.

    Shapes: float64 [channels] each. `before` and `after` are means, `shift` what of their difference is no chance, and
    `stretch` the logarithm of the variances' ratio, likewise.
    """

    before: Tensor
    after: Tensor
    shift: Tensor
    stretch: Tensor
    spread: Tensor

    @property
    def far(self) -> bool:
        """True where anything moved by more than rounding explains."""
        return bool(((self.shift / self.spread).abs() > SAME).any() | (self.stretch.abs() > SAME).any())


class Paired:
    """Sums over samples of four means (mean and mean square, before and after) and of their products, channel by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.values = 0  # of each channel: a sample of an image has many
        self.total: Tensor = torch.zeros(())
        self.square: Tensor = torch.zeros(())

    def add(self, before: Tensor, after: Tensor, values: int) -> None:
        """Takes in some samples, which had so many values of each channel. Shapes: as `row_moments` gives them."""
        rows = torch.cat((before, after))
        self.count += rows.shape[1]
        self.values += values
        self.total = self.total + rows.sum(1)
        self.square = self.square + torch.einsum("isc,jsc->ijc", rows, rows)

    def moved(self, *, stretched: bool = False) -> Moved:
        """How far mean and spread moved, each drawn back as far as chance may have moved it.

        With `stretched` the mean is compared with that of an original whose spread is as it became: where nothing gives a
        layer its spread back, its own mean beside a smaller spread would end most of its channels behind a ReLU.
        Source: James, Stein 1961, "Estimation with quadratic loss", the positive part, for all channels of a layer together.
        """
        mean = self.total / self.count
        floor = CONSTANT * mean[1].mean().clamp_min(torch.finfo(torch.float32).tiny)
        one, other = ((mean[at + 1] - mean[at].square()).clamp_min(floor) for at in (0, 2))
        ratio = torch.log(other / one).clamp(-MOST, MOST)
        slopes = torch.stack((2 * mean[0] / one, -1 / one, -2 * mean[2] / other, 1 / other))
        stretch = ratio * _shown(ratio, self._error(slopes))
        spread = one.sqrt().clamp_min(FAINT * torch.maximum(one.mean().sqrt(), mean[0].abs()))
        goal = torch.exp(stretch / 2) * mean[0] if stretched else mean[0]
        ones = torch.ones_like(goal)
        noise = self._error(torch.stack((-ones, 0 * ones, ones, 0 * ones))) / spread.square()
        shift = (mean[2] - goal) * _shown((mean[2] - goal) / spread, noise)
        return Moved(mean[0], mean[2], shift, stretch, spread)

    def _error(self, slopes: Tensor) -> Tensor:
        """The squared standard error of a sum of the four means; infinite where samples are too few. Shapes: [4, channels]."""
        if self.count < LEAST:
            return torch.full_like(slopes[0], torch.inf)
        mean = self.total / self.count
        covariance = self.square / self.count - mean[:, None] * mean[None]
        error = (slopes[:, None] * covariance * slopes[None]).sum((0, 1)).clamp_min(0) / (self.count - 1)
        doubt = (self.values + 1) / (self.values - 2)  # times as large: three values hardly show how far they scatter
        return error * doubt**CAUTION


def _shown(found: Tensor, noise: Tensor) -> Tensor:
    """The part of what was found that chance does not explain: one number for all channels, 0 ... 1."""
    return (1 - noise.mean() / found.square().mean().clamp_min(torch.finfo(torch.float64).tiny)).clamp(min=0)
