"""Learning from inside a teacher: losses between what layers of two networks return."""

from __future__ import annotations

from torch import Tensor


def same_features(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference in units of the variance of the teacher's features.

    Shapes: student, teacher [...] -> scalar: 0 for the same, about 1 for their mean.
    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets: hints for thin deep nets", eq. 3.
    Deviation: in units of the variance, so that a weight means the same at every layer.
    """
    return (student - teacher).square().mean() / teacher.var(correction=0).clamp_min(1e-12)
