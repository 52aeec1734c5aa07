"""Contrast: the student's features of a sample are told from those of others by the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from enxuto.checks import check_flags, named, within
from enxuto.errors import RangeError
from enxuto.functional.features import told_apart
from enxuto.task import Task
from enxuto.training.inside import Layers, checked_layers
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import Between, check_weight, projected


@dataclass(frozen=True)
class Contrast:
    """The cross entropy of finding each sample's features of the teacher among those of its batch; best on the last features
    before the head, in large batches. `projection` as in `Features`.

    Raises: RangeError for numbers out of range; LayerError when no layer is there or it does not run; ShapeError where shapes
    differ and no projection helps.
    Source: Tian, Krishnan, Isola 2020, "Contrastive representation distillation", with the negatives of the batch alone.
    """

    layers: Layers
    weight: float = 2.0
    temperature: float = 0.1
    projection: bool = False
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers, self))
        check_weight(self, self.weight)
        check_flags(self)
        if not within(self.temperature, "(0, inf)"):
            raise RangeError(f"{named('temperature', self.temperature)} of Contrast is no number above 0; use 0.1.")

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Between:
        """The term, with its projections."""
        return projected(
            self.layers,
            lambda one, other, _: told_apart(one, other, self.temperature),
            self.weight,
            student,
            task,
            teacher,
            self,
        )
