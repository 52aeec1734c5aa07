"""Relations: the samples of a batch lie to each other as they do in the teacher, in however many dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from enxuto.checks import named, within
from enxuto.errors import RangeError
from enxuto.functional.features import same_angles, same_distances
from enxuto.task import Task
from enxuto.training.inside import Layers, checked_layers
from enxuto.training.objective import Moment
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import Between, check_weight, pairs_and_shapes


@dataclass(frozen=True)
class Relations:
    """`distances` times the difference of distances between samples and `angles` times that of angles, by features at `layers`;
    no projection is needed. Angles take memory of the cube of the batch: 8 MB for 128 samples.

    Raises: RangeError for numbers out of range; LayerError when no layer is there or it does not run.
    Source: Park, Kim, Lu, Cho 2019, "Relational knowledge distillation".
    """

    layers: Layers
    weight: float = 100.0
    distances: float = 1.0
    angles: float = 2.0
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers, self))
        check_weight(self, self.weight)
        for name in ("distances", "angles"):
            if not within(getattr(self, name), "[0, inf)"):
                given = named(name, getattr(self, name))
                raise RangeError(f"{given} of Relations is no number of at least 0; use {getattr(type(self), name)}.")
        if not self.distances + self.angles:
            raise RangeError("distances=0 and angles=0 of Relations leave nothing to compare; use distances=1.0.")

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Between:
        """The term."""
        assert teacher is not None
        pairs, _ = pairs_and_shapes(self.layers, student, task, teacher, self)
        return Between(pairs, self._distance, self.weight)

    def _distance(self, ours: Tensor, theirs: Tensor, moment: Moment) -> Tensor:
        both = ((self.distances, same_distances), (self.angles, same_angles))
        return torch.stack([weight * apart(ours, theirs) for weight, apart in both if weight]).sum()
