"""Attention: layers of the student are large where the teacher's are, however many channels they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from enxuto.functional.features import same_attention
from enxuto.task import Task
from enxuto.training.inside import Layers, checked_layers
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import Between, check_weight, pairs_and_shapes, unlike


@dataclass(frozen=True)
class Attention:
    """The squared difference of the maps that say where channels at `layers` are large; no projection is needed.

    Raises: RangeError for a weight that is not above 0; LayerError when no layer is there or it does not run; ShapeError where
    there are no maps, or they differ in height or width.
    Source: Zagoruyko, Komodakis 2017, "Paying more attention to attention".
    """

    layers: Layers
    weight: float = 10.0
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers, self))
        check_weight(self, self.weight)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Between:
        """The term."""
        assert teacher is not None
        pairs, shapes = pairs_and_shapes(self.layers, student, task, teacher, self)
        for (one, other), (given, wanted) in zip(pairs.items(), shapes, strict=True):
            if min(len(given), len(wanted)) < 4 or given[2:] != wanted[2:]:
                what = "name layers that return maps [batch, channels, height, width] of one height and width"
                raise unlike(self, one, given, other, wanted, what)
        return Between(pairs, lambda ours, theirs, _: same_attention(ours, theirs), self.weight)
