"""Features: what layers inside the student return comes near to what the teacher's return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from enxuto.checks import check_flags
from enxuto.functional.features import same_features
from enxuto.task import Task
from enxuto.training.inside import Layers, checked_layers
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import Between, check_weight, projected


@dataclass(frozen=True)
class Features:
    """The squared difference of features at `layers`, in units of the variance of the teacher's.

    With `projection`, a linear map learns between features of which one axis differs (channels: a 1x1 convolution); it goes when
    the training ends. Raises: RangeError for a weight that is not above 0; LayerError when no layer is there or it does not
    run; ShapeError where shapes differ and no projection helps.
    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets: hints for thin deep nets".
    """

    layers: Layers
    weight: float = 1.0
    projection: bool = False
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers, self))
        check_weight(self, self.weight)
        check_flags(self)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Between:
        """The term, with its projections."""
        return projected(self.layers, lambda one, other, _: same_features(one, other), self.weight, student, task, teacher, self)
