"""Weights that a network closes by itself while it learns: a threshold that is learned, and gates that are open by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRETCH = (-0.1, 1.1)  # of hard concrete gates, beyond which they are clipped to closed and open
HEAT = 2 / 3  # their temperature
EDGE = math.log(-STRETCH[0] / STRETCH[1])


def soft_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """Each weight nearer to zero by the threshold, and zero below it; gradients reach both where something is left.

    Shapes: weight [any], threshold [1] -> as the weight.
    Source: Kusupati et al. 2020, "Soft threshold weight reparameterization for learnable sparsity", eq. 1 and 4.
    >>> soft_threshold(torch.tensor([3.0, -2.0, 0.5]), torch.tensor(1.0))
    tensor([ 2., -1.,  0.])
    """
    return weight.sign() * torch.relu(weight.abs() - threshold)


def hard_concrete(log_odds: Tensor, chance: Tensor | None = None) -> Tensor:
    """How far each gate is open, 0...1: drawn, by numbers of `chance` in (0, 1), or as it is in the end.

    Shapes: both [any] -> the same.
    Source: Louizos, Welling, Kingma 2018, "Learning sparse neural networks through L0 regularization", eq. 10, 11 and 13.
    >>> hard_concrete(torch.tensor([-5.0, 0.0, 5.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    drawn = log_odds if chance is None else (chance.logit() + log_odds) / HEAT
    return torch.sigmoid(drawn).mul(STRETCH[1] - STRETCH[0]).add(STRETCH[0]).clamp(0, 1)


def open_chances(log_odds: Tensor) -> Tensor:
    """The chance that each gate is not closed: what its weight costs. Source: Louizos et al. 2018, eq. 12.

    Shapes: [any] -> the same.
    """
    return torch.sigmoid(log_odds - HEAT * EDGE)
