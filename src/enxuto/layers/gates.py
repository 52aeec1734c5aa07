"""Gates between a float leaf and what its layer sees, which learn what is zero: one class a technique.

`forward` is what a training sees, `settled` what ships, and what evaluation sees; `closed` counts the zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from enxuto.functional.gates import hard_concrete, open_chances, soft_threshold

PACE = 20.0  # of what gates learn beside weights: one learning rate suits both
QUIET = 0.01  # of their gradients, which shall not decide how far those of weights are clipped
OPEN = 3.0  # log odds at first: 1 in 100 is closed, by chance
FIRST = 0.01  # of the mean size of the weights, the threshold at first


class Gate(nn.Module):
    """What lies between a leaf and its layer; it learns until it is `still`."""

    moved: nn.Parameter
    still = False

    def still_(self) -> None:
        """From now on weights alone learn, with what ships."""
        self.still = True
        self.moved.requires_grad_(False)

    def settled(self, weight: Tensor) -> Tensor:
        """The weight as it ships. Shapes: as the weight."""
        raise NotImplementedError

    def cost(self, part: float) -> Tensor:
        """One number that falls as more is closed, where the weight is so much of all; gradients reach the gate alone."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is seen. Shapes: as the weight."""
        return self.settled(weight)


def _quick(moved: Tensor) -> Tensor:
    """What learned, PACE times as fast, with a small gradient: optimizers that go by its sign do not mind."""
    return QUIET * moved + ((PACE - QUIET) * moved).detach()


class LearnedThreshold(Gate):
    """A threshold for the whole weight, the sigmoid of what learns (Kusupati et al. 2020)."""

    start: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        low = min(max(FIRST * float(weight.detach().float().abs().mean()), 1e-8), 0.5)
        self.register_buffer("start", torch.tensor(math.log(low / (1 - low)), device=weight.device))
        self.moved = nn.Parameter(torch.zeros((), device=weight.device))

    @property
    def inner(self) -> Tensor:
        """What the threshold is the sigmoid of."""
        return self.start + _quick(self.moved)

    def settled(self, weight: Tensor) -> Tensor:
        return soft_threshold(weight, torch.sigmoid(self.inner).to(weight.dtype))

    def cost(self, part: float) -> Tensor:
        return self.inner.square() / 2  # weight decay, which draws it to zero from below, and the threshold to a half


class Concrete(Gate):
    """A gate for every weight, open by chance while it trains (Louizos et al. 2018)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.moved = nn.Parameter(torch.zeros_like(weight.detach()))

    @property
    def log_odds(self) -> Tensor:
        """Shapes: as the weight."""
        return OPEN + _quick(self.moved)

    def forward(self, weight: Tensor) -> Tensor:
        if self.still or not self.training:
            return self.settled(weight)
        chance = torch.rand_like(self.moved).clamp_(1e-6, 1 - 1e-6)
        return weight * hard_concrete(self.log_odds, chance).to(weight.dtype)

    def settled(self, weight: Tensor) -> Tensor:
        return weight * hard_concrete(self.log_odds).to(weight.dtype)

    def cost(self, part: float) -> Tensor:
        return open_chances(self.log_odds).mean() * part
