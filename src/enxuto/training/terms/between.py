"""A term between layers of student and teacher, whatever its distance is; where shapes differ, with learned projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from enxuto.checks import named, within
from enxuto.errors import RangeError, ShapeError
from enxuto.task import Task
from enxuto.training.inside import returned
from enxuto.training.objective import Moment
from enxuto.training.teacher import Teacher

Distance = Callable[[Tensor, Tensor], Tensor]
"""How far what a layer of the student returned is from the teacher's: one number."""


class Between(nn.Module):
    """The mean distance over pairs of layers, times `weight`; `projections` learn, one a pair, nothing where shapes agree."""

    def __init__(self, pairs: Mapping[str, str], distance: Distance, weight: float, projections: list[nn.Module]) -> None:
        super().__init__()
        self.student_paths, self.teacher_paths = tuple(pairs), tuple(pairs.values())
        self.distance, self.weight = distance, weight
        self.projections = nn.ModuleList(projections)

    def forward(self, moment: Moment) -> Tensor:
        """One number, in units of the loss."""
        each = zip(self.student_paths, self.teacher_paths, self.projections, strict=True)
        losses = [self.distance(project(moment.inside[one]), moment.wanted_inside[other]) for one, other, project in each]
        return self.weight * torch.stack(losses).mean()


class Projection(nn.Module):
    """A linear map along one axis: along the channels of a convolution it is one of 1x1."""

    def __init__(self, axis: int, size: int, wanted: int) -> None:
        super().__init__()
        self.axis, self.map = axis, nn.Linear(size, wanted)

    def forward(self, values: Tensor) -> Tensor:
        """Shapes: [..., size, ...] -> [..., wanted, ...] at the axis."""
        return self.map(values.movedim(self.axis, -1)).movedim(-1, self.axis)


def projections(
    pairs: Mapping[str, str], student: nn.Module, task: Task, teacher: Teacher, term: object, *, allowed: bool
) -> list[nn.Module]:
    """A projection for each pair of layers whose shapes differ, where that is `allowed`; else nothing.

    Raises: ShapeError where shapes differ and no projection helps.
    """
    ours = returned(student, task.sample, pairs.keys(), "student", term)
    theirs = returned(teacher.module, task.sample, pairs.values(), "original", term)
    made: list[nn.Module] = []
    for one, other in pairs.items():
        given, wanted = tuple(ours[one].shape), tuple(theirs[other].shape)
        if given == wanted:
            made.append(nn.Identity())
            continue
        apart = [axis for axis, sizes in enumerate(zip(given, wanted, strict=False)) if sizes[0] != sizes[1]]
        fits = len(given) == len(wanted) and len(apart) == 1 and apart[0] > 0
        if not (fits and allowed):
            what = "projection=True learns a map between them" if fits else "name layers that differ along one axis at most"
            raise ShapeError(
                f"{type(term).__name__} compares '{one}' of the student, {given}, with '{other}' of the original, {wanted}; "
                f"{what}."
            )
        made.append(Projection(apart[0], given[apart[0]], wanted[apart[0]]).to(ours[one].device))
    return made


def check_weight(term: object, weight: object) -> None:
    """Raises RangeError for a weight that is no number of at least 0."""
    if not within(weight, "(0, inf)"):
        raise RangeError(f"{named('weight', weight)} of {type(term).__name__} is no number above 0; use for example 1.0.")
