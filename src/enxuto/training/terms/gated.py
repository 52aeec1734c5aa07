"""What learned gates have in common: they are put before the weights, and pressed until as much is zero as was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from enxuto.errors import RecipeError
from enxuto.layers.gates import Gate
from enxuto.layers.rehearsal import Rehearsal
from enxuto.select import Patterns
from enxuto.sites import sites
from enxuto.training.objective import Moment

REACHED, STILL = 0.6, 0.7  # of the training: when the sparsity shall be there, and from where on only weights learn
LOOKS = 200  # at it, in a training
NOW, EVER = 4.0, 80.0  # how hard the pressure's logarithm answers that of the density: what is off now, and has been so far
FARTHEST = 12.0  # from the first pressure, in its logarithm
NEAR = 0.15  # of the density that was asked for


class Gated:
    """A term: presses the gates of the chosen weights, harder where more is left than the cubic of a schedule allows.

    Source of the cubic: Zhu, Gupta 2017. Deviation: the papers' pressures are fixed, and sparsity is what comes of them.
    """

    def __init__(
        self, student: nn.Module, layers: Patterns, made: Callable[[Tensor], Gate], sparsity: float, pressure: float
    ) -> None:
        self.sparsity, self.pressure = sparsity, pressure
        self.leaves = [weight.rehearsal_() for weight in sites(student, layers)]
        for leaf in self.leaves:
            if leaf.gate is not None:
                raise RecipeError(
                    f"two terms close the weights of one layer, {type(leaf.gate).__name__} among them; leave one out, or give "
                    "each its own layers=."
                )
            leaf.gate = made(leaf.leaf).train(student.training)
        self.total = sum(leaf.leaf.numel() for leaf in self.leaves)
        self.looked, self.off, self.weight = -1, 0.0, pressure

    def __call__(self, moment: Moment) -> Tensor:
        """One number, in units of the loss."""
        if int(moment.progress * LOOKS) != self.looked:
            self.looked = int(moment.progress * LOOKS)
            self._steer(moment.progress)
        if moment.progress >= STILL:
            return torch.zeros((), device=self.leaves[0].leaf.device)
        costs = [gate.cost(leaf.leaf.numel() / self.total) for leaf, gate in zip(self.leaves, self._gates(), strict=True)]
        return self.weight * torch.stack([each.to(costs[0].device) for each in costs]).sum()

    def _gates(self) -> list[Gate]:
        return [gate for leaf in self.leaves if isinstance(gate := leaf.gate, Gate)]

    @torch.no_grad()
    def density(self) -> float:
        """The part of the weights that is not zero as it would ship."""
        left = [gate.settled(_kept(leaf)).count_nonzero() for leaf, gate in zip(self.leaves, self._gates(), strict=True)]
        return int(torch.stack([each.cpu() for each in left]).sum()) / self.total

    def _steer(self, progress: float) -> None:
        path = 1 - self.sparsity * (1 - (1 - min(1.0, progress / REACHED)) ** 3)
        off = math.log(max(self.density(), 1 / self.total) / path)
        if progress >= STILL:
            for gate in self._gates():
                gate.still_()
        self.off += off / LOOKS
        self.weight = self.pressure * math.exp(min(max(NOW * off + EVER * self.off, -FARTHEST), FARTHEST))

    def told(self) -> tuple[dict[str, float], str]:
        """The sparsity that it came to, and whether that is off."""
        density = self.density()
        missed = "" if abs(density / (1 - self.sparsity) - 1) <= NEAR else f"{density:.2%} of the weights are left"
        return {"sparsity": 1 - density}, missed and f"{missed} in place of {1 - self.sparsity:.2%}"


def _kept(leaf: Rehearsal) -> Tensor:
    return leaf.leaf if leaf.keep is None else leaf.leaf * leaf.ones(leaf.keep)
