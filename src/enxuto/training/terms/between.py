"""A term between layers of student and teacher, whatever its distance is; where shapes differ, with learned projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from enxuto.checks import named, within
from enxuto.errors import RangeError, ShapeError
from enxuto.task import Task
from enxuto.training.inside import Layers, paired, returned
from enxuto.training.objective import Moment
from enxuto.training.teacher import Teacher

Distance = Callable[[Tensor, Tensor, Moment], Tensor]
"""How far what a layer of the student returned is from what the teacher's did: one number."""
Shape = Sequence[int]


class Between(nn.Module):
    """The mean distance over pairs of layers, times `weight`; `projections` learn, one a pair, nothing where there is none."""

    def __init__(
        self, pairs: Mapping[str, str], distance: Distance, weight: float, projections: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.student_paths, self.teacher_paths = tuple(pairs), tuple(pairs.values())
        self.distance, self.weight = distance, weight
        self.projections = nn.ModuleList(projections or [nn.Identity() for _ in pairs])

    def forward(self, moment: Moment) -> Tensor:
        """One number, in units of the loss."""
        each = zip(self.student_paths, self.teacher_paths, self.projections, strict=True)
        losses = [self.distance(to(moment.inside[one]), moment.wanted_inside[other], moment) for one, other, to in each]
        return self.weight * torch.stack(losses).mean()


class Projection(nn.Module):
    """A linear map along one axis: along the channels of a convolution it is one of 1x1."""

    def __init__(self, axis: int, size: int, wanted: int) -> None:
        super().__init__()
        self.axis, self.map = axis, nn.Linear(size, wanted)

    def forward(self, values: Tensor) -> Tensor:
        """Shapes: [..., size, ...] -> [..., wanted, ...] at the axis."""
        return self.map(values.movedim(self.axis, -1)).movedim(-1, self.axis)


def check_weight(term: object, weight: object) -> None:
    """Raises RangeError for a weight that is no number above 0."""
    if not within(weight, "(0, inf)"):
        raise RangeError(f"{named('weight', weight)} of {type(term).__name__} is no number above 0; use for example 1.0.")


def pairs_and_shapes(
    layers: Layers, student: nn.Module, task: Task, teacher: Teacher, term: object
) -> tuple[dict[str, str], list[tuple[Shape, Shape]]]:
    """The teacher's path for each of the student's, and the shapes of what they return for the task's sample inputs.

    Raises: LayerError when there is no such layer, or it does not run.
    """
    pairs = paired(layers, student, teacher.module, term)
    ours = returned(student, task.sample, pairs.keys(), "student", term)
    theirs = returned(teacher.module, task.sample, pairs.values(), "original", term)
    return pairs, [(tuple(ours[one].shape), tuple(theirs[other].shape)) for one, other in pairs.items()]


def projected(
    layers: Layers, distance: Distance, weight: float, student: nn.Module, task: Task, teacher: Teacher | None, term: object
) -> Between:
    """The term with a projection for each pair of layers whose shapes differ, where the aim's `projection` is true.

    Raises: LayerError as above; ShapeError where shapes differ and no projection helps.
    """
    assert teacher is not None
    pairs, shapes = pairs_and_shapes(layers, student, task, teacher, term)
    made: list[nn.Module] = []
    for (one, other), (given, wanted) in zip(pairs.items(), shapes, strict=True):
        apart = [axis for axis, sizes in enumerate(zip(given, wanted, strict=False)) if sizes[0] != sizes[1]]
        fits = len(given) == len(wanted) and len(apart) == 1 and apart[0] > 0
        if given == wanted:
            made.append(nn.Identity())
        elif fits and getattr(term, "projection", False):
            made.append(Projection(apart[0], given[apart[0]], wanted[apart[0]]))
        else:
            what = "projection=True learns a map between them" if fits else "name layers that differ along one axis at most"
            raise unlike(term, one, given, other, wanted, what)
    return Between(pairs, distance, weight, made)


def unlike(term: object, one: str, given: Shape, other: str, wanted: Shape, what: str) -> ShapeError:
    """The error for layers that a term cannot compare; `what` would work."""
    return ShapeError(
        f"{type(term).__name__} compares '{one}' of the student, {tuple(given)}, with '{other}' of the original, "
        f"{tuple(wanted)}; {what}."
    )
