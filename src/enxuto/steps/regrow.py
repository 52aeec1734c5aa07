"""Regrow: trains a network that is sparse from the first batch to the last, and lets the pattern move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from enxuto.checks import named, whole, within
from enxuto.errors import RangeError, RecipeError
from enxuto.functional.keep import check_sparsity, keep_largest_of
from enxuto.functional.regrow import decayed, erdos_renyi, exchanged
from enxuto.functional.scores import lamp, magnitude
from enxuto.select import Patterns
from enxuto.sites import Site, sites
from enxuto.task import Task, check_call
from enxuto.training.tighten import Look

BY = ("gradient", "random")
SPREADS = ("lamp", "erdos-renyi", "uniform")


@dataclass(frozen=True)
class Regrow:
    """Dynamic sparse training, for `Recover(during=[Regrow(0.9)])` or a loop of your own: never more than the rest is alive.

    The weights that `spread` gives each layer are chosen before the first batch: "lamp" by the scores of all weights together,
    "erdos-renyi" and "uniform" a number for each layer, of which the largest. From then on, `updates` times, evenly over the part
    `end` of the training, a `share` of each layer's weights goes, the smallest, and as many come back: where the gradients are
    largest (by="gradient"), or anywhere (by="random"). What is out is exactly zero and has no momentum; what comes back starts
    from there with the next batch. The share falls along a cosine. Whatever is sparser already stays as sparse.
    Raises: RangeError for a number out of range; RecipeError when it is called like a step that does not train.
    Source: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity" (SET);
    Evci et al. 2020, "Rigging the lottery: making all tickets winners" (RigL). Deviation: the batch that moves the pattern also
    trains.
    """

    sparsity: float = 0.9
    layers: Patterns = "*"
    by: Literal["gradient", "random"] = "gradient"
    share: float = 0.3
    updates: int = 30
    end: float = 0.75
    spread: Literal["lamp", "erdos-renyi", "uniform"] = "lamp"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.by not in BY:
            raise RangeError(f"by={self.by!r} is not known; use 'gradient' or 'random'.")
        if self.spread not in SPREADS:
            raise RangeError(f"spread={self.spread!r} is not known; use one of {', '.join(map(repr, SPREADS))}.")
        if not within(self.share, "(0, 1]"):
            raise RangeError(f"{named('share', self.share)} is the part of the weights that goes and comes; use for example 0.3.")
        if not whole(self.updates, 1):
            raise RangeError(f"{named('updates', self.updates)} is no number of exchanges; use for example 30.")
        if not within(self.end, "(0, 1]"):
            raise RangeError(
                f"{named('end', self.end)} is the part of the training that exchanges weights; use for example 0.75."
            )
        if not whole(self.seed, 0, 2**31):
            raise RangeError(f"{named('seed', self.seed)} is no whole number from 0 to 2**31; use for example 0.")

    def __call__(self, model: nn.Module, task: Task) -> NoReturn:
        """Raises: RecipeError, as weights come back only while something trains."""
        check_call(self, model, task)
        raise RecipeError(
            f"Regrow(sparsity={self.sparsity}) moves the zeros of a network in training and does nothing by itself; write "
            f"Recover(during=[Regrow(sparsity={self.sparsity})]), or prepare(task, [Regrow(...)]) for a loop of your own."
        )

    @property
    def observes(self) -> bool:
        """It looks at gradients, or at least at the optimizer, before each update."""
        return True

    @torch.no_grad()
    def rehearse_(self, model: nn.Module, strength: float) -> None:
        """Makes the model sparse at whatever strength, unless it is so."""
        chosen = sites(model, self.layers)
        leaves = [weight.rehearsal_() for weight in chosen]
        alive = sum(leaf.leaf.numel() if leaf.keep is None else int(leaf.keep.count_nonzero()) for leaf in leaves)
        allowed = sum(leaf.leaf.numel() for leaf in leaves)
        if alive > allowed - round(self.sparsity * allowed):
            for leaf, keep in zip(leaves, self._first(chosen, [leaf.kept() for leaf in leaves]), strict=True):
                leaf.keep = keep if leaf.keep is None else keep & leaf.keep
        for leaf in leaves:
            leaf.grow, leaf.watched = False, self.by == "gradient"
            if leaf.keep is not None:
                leaf.leaf.data = leaf.leaf.where(leaf.keep, 0.0)

    def _first(self, chosen: Sequence[Site], values: Sequence[Tensor]) -> list[Tensor]:
        """What of each weight is there at first. Raises: RangeError when that is nothing."""
        if self.spread == "lamp":
            return keep_largest_of([lamp(each).masked_fill_(each == 0, -1.0) for each in values], self.sparsity)
        parts = [1 - self.sparsity] * len(values)
        if self.spread == "erdos-renyi":
            parts = erdos_renyi([each.shape for each in values], self.sparsity)
        found = []
        for weight, each, part in zip(chosen, values, parts, strict=True):
            count = int(part * each.numel() + 1e-6)
            if not count:
                raise RangeError(
                    f"sparsity={self.sparsity} with spread={self.spread!r} leaves none of the {each.numel()} weights of "
                    f"'{weight.key}'; use spread='lamp', or a lower sparsity."
                )
            keep = torch.zeros(each.numel(), dtype=torch.bool, device=each.device)
            keep[magnitude(each).flatten().topk(count).indices] = True
            found.append(keep.view_as(each))
        return found

    @torch.no_grad()
    def observe_(self, model: nn.Module, look: Look) -> None:
        """Exchanges weights where it is time."""
        due = look.due(self.updates, self.end)
        chance = torch.Generator().manual_seed(self.seed + look.done)
        for _, leaf, gradient in look.met(model, self.layers):
            if not due or leaf.keep is None or not leaf.leaf.requires_grad:
                continue
            if self.by == "random":
                gradient = torch.rand(leaf.leaf.shape, generator=chance).to(leaf.leaf.device)
            if gradient is None:
                continue  # its layer was not used
            share = decayed(self.share, look.done / (self.end * look.batches))
            leaf.keep, stayed = exchanged(leaf.leaf, leaf.keep, gradient.abs(), share)
            leaf.leaf.masked_fill_(~stayed, 0)
            look.forget_(leaf.leaf, stayed)
            if leaf.leaf.grad is not None:
                leaf.leaf.grad.masked_fill_(~stayed, 0)
