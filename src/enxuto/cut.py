"""How a layer shrinks: rows and columns come out of its tensors, and the layer prints as what it is.

Here are the words for *what* comes out (`Slice`, `Group`) and the one way to take it out (`cut_`). Which channels
belong together is found in `groups`; which are worth keeping is decided by the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from enxuto.errors import RangeError
from enxuto.layers.grids import CodedTensor
from enxuto.layers.traits import traits
from enxuto.sites import Site, held_by, together

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of one dimension of one tensor that a group owns.

    `unit_of` [size of the dimension] holds the unit that owns each index, -1 where the group owns none.
    A tensor `writes` a channel when it makes its values, `reads` it when it sums over it; it may do both (a tied
    embedding) or neither (the scale of a batch norm just follows).
    """

    path: str
    name: str
    dim: int
    unit_of: IntArray
    writes: bool = False
    reads: bool = False

    def indices(self, units: Collection[int]) -> IntArray:
        """The indices along `dim` that these units own, ascending."""
        return np.flatnonzero(np.isin(self.unit_of, list(units)))

    @property
    def address(self) -> str:
        """Where the tensor is: "fc1.weight"."""
        return f"{self.path}.{self.name}" if self.path else self.name


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of one kind: unit `u` of every slice comes out together or not at all."""

    size: int
    slices: tuple[Slice, ...]

    @property
    def writers(self) -> tuple[str, ...]:
        """Paths of the modules that make the channels, in the order of the network."""
        return tuple(dict.fromkeys(part.path for part in self.slices if part.writes))

    @property
    def readers(self) -> tuple[str, ...]:
        """Paths of the modules that sum over the channels, in the order of the network."""
        return tuple(dict.fromkeys(part.path for part in self.slices if part.reads))

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all modules that get smaller, in the order of the network."""
        return tuple(dict.fromkeys(part.path for part in self.slices))


def cut_(model: nn.Module, removed: Iterable[tuple[Group, Collection[int]]]) -> None:
    """Takes units of groups out of the model, in place: every tensor once per dimension, then the modules' own numbers.

    Tensors shared between modules stay shared. Gradients are dropped; `requires_grad` and dtype stay.
    Raises: RangeError when a unit does not exist or nothing of a group would be left.
    """
    keeps: dict[tuple[str, str, int], npt.NDArray[np.bool_]] = {}
    for group, units in removed:
        wrong = [unit for unit in units if not 0 <= unit < group.size]
        if wrong or len(set(units)) >= group.size:
            raise RangeError(
                f"units {sorted(units)[:8]} of the {group.size} of {', '.join(group.writers)} cannot come out; "
                f"choose fewer than {group.size} units, numbered from 0."
            )
        for part in group.slices:
            keep = keeps.setdefault((part.path, part.name, part.dim), np.ones(len(part.unit_of), dtype=bool))
            keep[part.indices(units)] = False
    ties = _ties(model)
    touched: dict[nn.Module, None] = {}
    for (path, name, dim), keep in keeps.items():
        if keep.all():
            continue
        place = Site(path, name, model.get_submodule(path))
        smaller = _taken(place, dim, torch.from_numpy(keep))
        for each in (place, *ties.get((place.module, name), ())):
            _put_(each, smaller)
            touched[each.module] = None
    for module in touched:
        traits(module).settle_(module)


def _taken(place: Site, dim: int, keep: Tensor) -> object:
    """Some indices of one dimension of a parameter, a buffer or a channel count. Every cut of every tensor comes through here.

    A coded weight keeps its codes wherever its grid allows it. Shapes: keep bool [size of dim].
    """
    held: object = place.tensor
    kept = keep.nonzero().flatten()
    if isinstance(held, CodedTensor):
        return held.take(dim, kept.to(held.codes.device), place.name)
    if not isinstance(held, Tensor):  # a layer without tensors that still counts its channels, as InstanceNorm2d does
        return len(kept)
    smaller = held.detach().index_select(dim, kept.to(held.device))
    return nn.Parameter(smaller, requires_grad=held.requires_grad) if isinstance(held, nn.Parameter) else smaller


def _put_(place: Site, value: object) -> None:
    if isinstance(value, CodedTensor):
        place.code_(value)
    else:
        setattr(place.module, place.name, value)


def _ties(model: nn.Module) -> dict[tuple[nn.Module, str], list[Site]]:
    """All places of each parameter or buffer, by each of them."""
    every = [Site(path, name, module) for path, module in model.named_modules() for name in (*held_by(module), *module._buffers)]
    return {(place.module, place.name): same for same in together(every).values() for place in same}
