"""What student and teacher say of the classes, for terms that compare it."""

from __future__ import annotations

from torch import Tensor

from enxuto.errors import TaskError
from enxuto.functional.likeness import class_axis
from enxuto.training.lessons import named_as
from enxuto.training.objective import Moment


def scores_of(moment: Moment, output: str, term: object) -> tuple[Tensor, Tensor]:
    """That output of the student and of the teacher, or without a name the first that can hold scores of classes.

    Shapes: [..., classes] twice. Raises: TaskError when there is none, or the shapes differ.
    """
    wanted = moment.wanted
    name = output or next((name for name, each in wanted.items() if _may_score(each)), "")
    given = named_as(moment.outputs, wanted)
    if name not in wanted or name not in given:
        listed = ", ".join(f"{each!r} {tuple(tensor.shape)}" for each, tensor in wanted.items())
        raise TaskError(
            f"{type(term).__name__} compares {'output ' + repr(output) if output else 'scores of classes'}, and the original "
            f"returns {listed}; write output= as one of these that has a score for each class."
        )
    one, other = given[name], wanted[name]
    if one.shape != other.shape or not _may_score(other):
        raise TaskError(
            f"{type(term).__name__} compares output '{name}', which is {tuple(one.shape)} of the student and "
            f"{tuple(other.shape)} of the original; both must have a score for each class."
        )
    return one.movedim(class_axis(one.ndim), -1), other.movedim(class_axis(other.ndim), -1)


def _may_score(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[class_axis(tensor.ndim)] > 1
