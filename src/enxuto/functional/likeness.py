"""How alike two outputs of a network are: classes by the largest score, values by their error against how far they spread.

The spread is that of the original's outputs over the samples, channel by channel, so that neither a constant offset nor one
channel of large numbers hides what happens to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SURE = 1e-3  # rows of half precision still sum to one so closely
VARIES = 1e-6  # variance of a channel, as a fraction of the mean of all, below which it counts as constant
ROUNDING = 1e-4  # spreads: two outputs that differ by less are the same numbers, computed in another order


def class_axis(ndim: int) -> int:
    """Where the classes are: the last axis, and the second of images [samples, classes, height, width]."""
    return 1 if ndim >= 4 else ndim - 1


def probabilities(outputs: Tensor) -> bool:
    """True when each row of [samples, classes >= 2] is a distribution: nothing negative, and all of it sums to one."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not outputs.is_floating_point() or not outputs.numel():
        return False
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < SURE).all())


def log_probabilities(outputs: Tensor) -> bool:
    """True when the exponentials of the rows are a distribution, as log_softmax gives them."""
    return outputs.is_floating_point() and probabilities(outputs.float().exp())


def same_entries(before: Tensor, after: Tensor, rows: int) -> Tensor:
    """The share of equal entries in each of `rows` rows. Shapes: [...] twice -> float64 [rows]."""
    return (before == after).reshape(rows, -1).double().mean(1)


def same_classes(before: Tensor, after: Tensor, rows: int) -> Tensor:
    """The share of places whose largest class is the same. Shapes: as `class_axis` says -> float64 [rows]."""
    axis = class_axis(before.ndim)
    return same_entries(before.argmax(axis), after.argmax(axis), rows)


def largest(values: Tensor) -> float:
    """The largest magnitude among the finite values; 0 when there is none.

    >>> largest(torch.tensor([-3.0, 2.0, float("-inf")]))
    3.0
    """
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def distance(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of the expected: 0 is the same, 1 as far off as zeros would be. Values that are not
    finite take no part where both have the same; else the distance is infinite.

    >>> distance(torch.tensor([0.5, float("-inf")]), torch.tensor([1.0, float("-inf")]))
    0.5
    """
    counts = expected.isfinite()
    if found.shape != expected.shape or not torch.allclose(found[~counts], expected[~counts], equal_nan=True):
        return float("inf")
    one, other = found[counts].double(), expected[counts].double()
    return float(((one - other).norm() / other.norm().clamp_min(1e-30)).nan_to_num(nan=torch.inf, posinf=torch.inf))


@dataclass(frozen=True, eq=False)
class Spread:
    """How far outputs spread over samples: the variance of each channel, or one of all where no axis holds channels."""

    axis: int | None
    variance: Tensor | float  # float64 [channels] or [1], above 0

    @staticmethod
    def of(batches: Sequence[Tensor]) -> Spread:
        """The spread of one output, given batch by batch.

        A channel that does not vary counts as spreading as far as the others do on average; where nothing varies, as in
        a single sample, the mean square stands in, and 1 where all is zero.
        Shapes: [samples, ...] each; only samples and, say, time may differ from batch to batch.
        """
        axis = _channel_axis(batches)
        mean = _mean(batches, axis, 0.0)
        variance, square = (_mean(batches, axis, center, power=2) for center in (mean, 0.0))
        constant = (variance <= VARIES * variance.mean()) | (variance <= VARIES**2 * square)
        varying = variance[~constant]
        typical = float((varying if len(varying) else square).mean())
        return Spread(axis, torch.where(constant, typical or 1.0, variance))

    def errors(self, before: Tensor, after: Tensor) -> Tensor:
        """Squared differences in units of the variance, channels last; 0 where both are the same number or infinity.

        Where there are not as many channels as there were (each sample beside each of its batch, say), all spread alike.
        """
        one, other = (_channels_last(outputs, self.axis) for outputs in (before, after))
        variance = self.variance.to(one) if isinstance(self.variance, Tensor) else self.variance
        if isinstance(variance, Tensor) and len(variance) not in (1, *one.shape[-1:]):
            variance = variance.mean()
        return torch.where(one == other, 0, other - one).square() / variance

    def likeness(self, before: Tensor, after: Tensor, rows: int) -> Tensor:
        """One minus the mean squared error of each row in units of the variance, at least 0.

        Averaged over rows it is R squared, the share of the variation that is kept, but for rows that are worse than nothing.
        Shapes: [...] twice -> float64 [rows], 0 ... 1.
        """
        wide = torch.complex128 if before.is_complex() else torch.float64
        errors = self.errors(before.to(wide), after.to(wide)).nan_to_num(nan=torch.inf)
        return (1 - errors.reshape(rows, -1).mean(1)).clamp(min=0)


def _channel_axis(batches: Sequence[Tensor]) -> int | None:
    """The first axis that can hold channels and is as long in every batch."""
    ndim = _real(batches[0]).ndim
    places = (2, 1) if ndim == 3 else (1,) if ndim >= 2 else ()
    return next((axis for axis in places if len({_real(batch).shape[axis] for batch in batches}) == 1), None)


def _mean(batches: Sequence[Tensor], axis: int | None, center: Tensor | float, power: int = 1) -> Tensor:
    """The mean of (value - center) ** power in each channel, float64 [channels]; infinities do not count."""
    total: Tensor | float = 0.0
    counted: Tensor | float = 0.0
    for batch in batches:
        values = _channels_last(batch, axis).double()
        values = values.reshape(-1, values.shape[-1])
        total = total + torch.where(values.isfinite(), (values - center) ** power, 0).sum(0)
        counted = counted + values.isfinite().sum(0)
    return torch.as_tensor(total) / torch.as_tensor(counted).clamp(min=1)


def _channels_last(outputs: Tensor, axis: int | None) -> Tensor:
    """[..., channels]; one channel where there is no such axis."""
    real = _real(outputs)
    return real.reshape(*real.shape, 1) if axis is None else real.movedim(axis, -1)


def _real(outputs: Tensor) -> Tensor:
    return torch.view_as_real(outputs) if outputs.is_complex() else outputs
