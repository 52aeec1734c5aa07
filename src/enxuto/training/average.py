"""An average of the weights along a training, which is often better than where the last update left them.

Source: Polyak, Juditsky 1992, "Acceleration of stochastic approximation by averaging", as an exponential one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from enxuto.layers.rehearsal import Rehearsal


class Average:
    """Of all that learns and of the running statistics of norms: each update moves it by `1 - decay`, and by more at first.

    What is averaged of a weight that is seen through a projection is its float leaf and what of its grid learns; zeros and
    codes are those that the averaged leaf has.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.own = [parameter for parameter in student.parameters() if parameter.requires_grad]
        norms = [module for module in student.modules() if isinstance(module, _NormBase)]
        self.own += [it for norm in norms for it in (norm.running_mean, norm.running_var) if it is not None]  # type: ignore[misc]
        self.values = [tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True) for tensor in self.own]
        self.leaves = [module for module in student.modules() if isinstance(module, Rehearsal)]
        self.grids = [leaf.base for leaf in self.leaves]

    @torch.no_grad()
    def update_(self) -> None:
        """Takes in the student as it is now."""
        self._follow_()
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))  # what was there at first is soon forgotten
        now = [tensor.detach().to(value.dtype) for tensor, value in zip(self.own, self.values, strict=True)]
        torch._foreach_lerp_(self.values, now, 1 - decay)

    def _follow_(self) -> None:
        """A grid that was named anew has learned nothing yet: the average of the one before is none of it."""
        for at, leaf in enumerate(self.leaves):
            if leaf.base is not self.grids[at]:
                self.grids[at] = leaf.base
                place = next((place for place, tensor in enumerate(self.own) if tensor is leaf.change), None)
                if place is not None and leaf.change is not None:
                    self.values[place].copy_(leaf.change.detach())

    def state(self) -> dict[str, Any]:
        """What it has come to."""
        return {"updates": self.updates, "values": self.values}

    def resume_(self, state: dict[str, Any]) -> None:
        """Goes on from there, for a student that is as it was then."""
        self.updates, self.values = state["updates"], state["values"]
        self.grids = [leaf.base for leaf in self.leaves]

    @contextmanager
    def within(self) -> Iterator[None]:
        """Inside the block the student is the average."""
        held = [tensor.data for tensor in self.own]
        self.give_()
        try:
            yield
        finally:
            for tensor, before in zip(self.own, held, strict=True):
                tensor.data = before

    def give_(self) -> None:
        """The student becomes the average; nothing is copied where their types are one."""
        self._follow_()
        for tensor, value in zip(self.own, self.values, strict=True):
            tensor.data = value.to(tensor.dtype)
