"""A weight in training: a float leaf that the layer sees through the projection it will be shipped with.

The forward value is the projected one; gradients reach the leaf straight through, and the grid (scale, codebook) learns too.
Source: Bengio, Léonard, Courville 2013, "Estimating or propagating gradients through stochastic neurons"; for the grids
Esser et al. 2020 (scales) and Han et al. 2016 (codebooks: the gradient of an entry is the sum over its weights).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from enxuto.layers.gates import Gate
from enxuto.layers.grids import CodedTensor, Grid


class Rehearsal(nn.Module):
    """A float leaf, what of it stays (`keep`), and the grid it is seen on; `frozen()` gives what it became.

    `grow=True` lets gradients reach weights that are out at the moment, so that they may come back. With `watched` the gradient
    of what the layer sees is kept as well, also where it is out, without reaching the leaf there. A `gate` learns what of the
    leaf is zero besides. Grids learn in
    relative terms, `scale · exp(growth)` and `codebook + spread · shift`, so one learning rate suits them and the leaf.
    """

    keep: Tensor | None
    base: Tensor | None
    told: Tensor  # in a checkpoint: whether it is seen on its grid yet, and whether it may grow
    movement: Tensor | None
    change: nn.Parameter | None

    def __init__(self, weight: Tensor, *, keep: Tensor | None = None, grow: bool = False, learns: bool = True) -> None:
        super().__init__()
        self.leaf = nn.Parameter(weight.detach().clone(), requires_grad=learns)
        self.register_buffer("keep", keep)
        self.register_buffer("base", None)
        self.register_buffer("told", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("movement", None)  # what a training has gathered of it, where scores ask for that
        self.register_parameter("change", None)
        self.gate: Gate | None = None
        self.grow = grow
        self.watched = False
        self.met: Tensor | None = None  # the gradient since it was last taken
        self.grid: Grid | None = None
        self.named: Grid | None = None  # the grid it was got ready for
        self.passed: tuple[Grid, ...] = ()  # those that a later step took the place of
        self._known: tuple[tuple[Tensor, tuple[object, ...], Tensor], ...] = ()  # the last two of `ones`

    @classmethod
    def of(cls, tensor: Tensor | CodedTensor) -> Rehearsal:
        """A rehearsal of a weight as it is now: exact zeros stay zero, its grid stays and learns. A frozen one learns nothing."""
        weight = (tensor() if isinstance(tensor, CodedTensor) else tensor).detach()
        learns = isinstance(tensor, CodedTensor) or tensor.requires_grad
        made = cls(weight, keep=weight != 0 if bool((weight == 0).any()) else None, learns=learns)
        if isinstance(tensor, CodedTensor):
            made.see_(tensor)
        return made

    def see_(self, coded: CodedTensor, *, now: bool = True) -> None:
        """The leaf is seen on the grid of `coded`: from now on, or from a later call with `now` on.

        The parameter that lets the grid learn is made at the first call, so an optimizer made after it knows it.
        """
        base = self.base = coded.learning()
        if self.change is None or self.change.shape != base.shape:
            self.change = nn.Parameter(torch.zeros_like(base), requires_grad=self.leaf.requires_grad)
        self.change.data.zero_()
        if self.named not in (None, coded.grid):
            self.passed = (*self.passed, self.named)
        self.named = coded.grid
        self.grid = coded.grid if now else None

    def kept(self) -> Tensor:
        """The leaf with zeros where nothing stays, or its gate is closed."""
        weight: Tensor = self.leaf
        if self.keep is not None:
            projected = weight * self.ones(self.keep)
            weight = weight + (projected - weight).detach() if self.grow else projected
        if self.gate is not None:
            weight = self.gate(weight)
        if self.watched and weight.requires_grad:
            weight = weight.view_as(weight)  # a hook on the leaf itself would stay for ever
            weight.register_hook(self._meet)
        return weight

    def _meet(self, gradient: Tensor) -> None:
        self.met = gradient.detach() if self.met is None else self.met + gradient.detach()

    def taken(self) -> Tensor | None:
        """The gradient of what the layer has seen since this was last asked; None where there was none. Shapes: as the leaf."""
        met, self.met = self.met, None
        return met

    def ones(self, keep: Tensor) -> Tensor:
        """Ones where something stays, in the leaf's type: a product with them is several times as fast as a choice."""
        known = next((each for each in self._known if each[0] is keep and each[1] == (keep._version, self.leaf.dtype)), None)
        if known is None:
            known = keep, (keep._version, self.leaf.dtype), keep.to(self.leaf.dtype)
            self._known = (known, *self._known[:1])
        return known[2]

    def learned(self) -> Tensor:
        """The scales or the codebook as they are now and as they ship, in float32; the codebook's zero stays zero."""
        assert self.base is not None
        assert self.change is not None
        assert self.grid is not None
        return self.grid.learned(self.base.float(), self.change.float())  # a model may have been moved to another dtype

    def forward(self) -> Tensor:
        """The weight as the layer sees it, in its dtype: projected in float32, as codes decode."""
        weight = self.kept()
        if self.grid is None:
            return weight
        return self.grid.seen(weight.float(), self.learned()).to(weight.dtype)

    def _save_to_state_dict(self, *where: Any) -> None:
        """Says also what is no tensor, as one that every format of checkpoints takes."""
        self.told = torch.tensor([self.grid is not None, self.grow], device=self.leaf.device)
        super()._save_to_state_dict(*where)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A training is taken up where it was: what is kept, grid and growth are the checkpoint's, also where it has none."""
        for name in ("keep", "movement") if f"{prefix}leaf" in state_dict else ():
            given = state_dict.get(f"{prefix}{name}")
            setattr(self, name, None if given is None else torch.empty_like(self.leaf, dtype=given.dtype))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}told" in state_dict:
            seen, self.grow = self.told.tolist()
            self.grid = self.named if seen else None

    @torch.no_grad()
    def frozen(self) -> Tensor | CodedTensor:
        """What the layer keeps: a float tensor, or codes on the learned grid."""
        weight = (self.leaf if self.keep is None else torch.where(self.keep, self.leaf, 0.0)).detach()
        if self.gate is not None:
            settled = self.gate.settled(weight)
            weight = torch.where(settled == 0, 0.0, settled)  # no zero of either sign
        return weight if self.grid is None else self.grid.coded(weight, self.learned())
