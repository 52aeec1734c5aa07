"""What inputs made for a network are to look like, where there are none: as its batch norms remember, and smooth."""

from __future__ import annotations

from torch import Tensor


def unlike_statistics(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """How far the mean and the deviation of each channel are from those that a batch norm has seen, in units of the latter.

    Shapes: values [batch, channels, ...], mean [channels], variance [channels] -> scalar, the mean over channels.
    Source: Yin et al. 2020, "Dreaming to distill: data-free knowledge transfer via DeepInversion", eq. 4. Deviation: squared, and
    in units of the deviation, so that no layer is louder than another.
    """
    rows = values.movedim(1, -1).flatten(0, -2)
    deviation = variance.clamp_min(1e-12).sqrt()
    means = ((rows.mean(0) - mean) / deviation).square()
    spreads = (rows.var(0, correction=0).clamp_min(1e-12).sqrt() / deviation - 1).square()
    return (means + spreads).mean()


def roughness(images: Tensor) -> Tensor:
    """The mean squared difference of neighbours, down and across.

    Shapes: images [batch, channels, height, width] -> scalar.
    Source: Mahendran, Vedaldi 2015, "Understanding deep image representations by inverting them", eq. 5 with beta = 2.
    """
    down, across = images.diff(dim=2), images.diff(dim=3)
    return sum((each.square().mean() for each in (down, across) if each.numel()), start=images.new_zeros(()))
