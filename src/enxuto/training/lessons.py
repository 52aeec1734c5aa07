"""What a student learns from its teacher: every output, each by what it is, none louder than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from enxuto.batches import batch_size, mapped
from enxuto.calls import call, device_of, evaluating
from enxuto.errors import GradientError, TaskError
from enxuto.functional.distill import same_values, soft_labels
from enxuto.functional.likeness import Spread, class_axis, log_probabilities, probabilities
from enxuto.outputs import output_tensors, said_of
from enxuto.task import Task

SAMPLES = 256  # of calibration, which suffice for the spread of the teacher's outputs
INVISIBLE = 1e-3  # part of what erasing the scores does to a loss, below which the loss did not see a change


@dataclass(frozen=True, eq=False)
class Lesson:
    """One output of the teacher: how it is taught, and how far it spreads. `open` while nothing says what its numbers are."""

    name: str
    kind: Literal["scores", "probabilities", "values"]
    spread: Spread
    open: bool = False

    def loss(self, given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """How far the student is from the teacher: one number. Raises: TaskError when shapes differ."""
        if given.shape != wanted.shape:
            raise TaskError(
                f"the model returns {tuple(given.shape)} as output '{self.name}' in training where the original returns "
                f"{tuple(wanted.shape)}, so it cannot be taught; say outputs={{'{self.name}': 'ignore'}}."
            )
        if self.kind == "values":
            return same_values(given, wanted, self.spread)
        given, wanted = (scores.movedim(class_axis(scores.ndim), -1) for scores in (given, wanted))
        if self.kind == "probabilities":
            given, wanted = (scores.clamp_min(1e-12).log() for scores in (given, wanted))
        return soft_labels(given, wanted, temperature)


def lessons(task: Task, teacher: nn.Module) -> tuple[Lesson, ...]:
    """A lesson for each output of the teacher that has values between which one can go; `open` where nothing says what they are.

    Raises: TaskError when `task.outputs` does not fit, or no output can be taught.
    """
    device = device_of(teacher)
    with evaluating(teacher):
        found: list[dict[str, Tensor]] = []
        seen = 0
        for batch in task.calibration:
            found.append(output_tensors(call(teacher, mapped(batch, lambda tensor: tensor.to(device)))))
            seen += batch_size(batch) or 1
            if seen >= SAMPLES:
                break
    every = {name: tensor for each in reversed(found) for name, tensor in each.items()}
    made = []
    for name, said in said_of(every, task.outputs).items():
        tensors = [each[name] for each in found if name in each]
        if not (tensors[0].is_floating_point() or tensors[0].is_complex()):
            continue
        spread = Spread.of(tensors)
        if all(map(probabilities, tensors)) and said != "values":
            made.append(Lesson(name, "probabilities", spread))
        elif said == "classes" or (said is None and all(map(log_probabilities, tensors))):
            made.append(Lesson(name, "scores", spread))
        else:
            made.append(Lesson(name, "values", spread, open=said is None))
    if not made:
        raise GradientError(
            f"no output of the model can be taught, they are integers ({', '.join(every)}); return what they come from."
        )
    return tuple(made)


def settled(open_lessons: Sequence[Lesson], loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> tuple[Lesson, ...]:
    """The lessons, where the user's own loss tells which outputs are scores of classes.

    Scores of classes mean the same when a number is added to all scores of a sample: an output is taught as such where the
    loss changes with it, but not by that.
    """
    with torch.no_grad():
        plain = {name: tensor.detach() for name, tensor in output_tensors(outputs).items()}
        return tuple(
            replace(lesson, kind="scores", open=False)
            if lesson.open
            and lesson.name in plain
            and _only_differences_count(lesson.name, plain[lesson.name], loss, outputs, targets)
            else lesson
            for lesson in open_lessons
        )


def _only_differences_count(name: str, scores: Tensor, loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> bool:
    axis = class_axis(scores.ndim)
    if scores.ndim < 2 or scores.shape[axis] < 2 or not scores.is_floating_point():
        return False
    shape = [1 if place == axis else size for place, size in enumerate(scores.shape)]
    steps = torch.linspace(-1, 1, steps=scores.numel() // scores.shape[axis], device=scores.device, dtype=scores.dtype)
    shifted = scores + scores.std() * steps.reshape(shape) + scores.std()
    given = output_tensors(outputs)[name]

    def of(other: Tensor) -> float:
        return float(loss(mapped(outputs, lambda it: other if it is given else it.detach()), targets))

    try:
        before, moved, erased = map(of, (scores, shifted, torch.zeros_like(scores)))
    except Exception:  # a loss of a user's may refuse such values in any way: those of probabilities, not of scores
        return False
    return abs(moved - before) < INVISIBLE * abs(erased - before)


def named_as(given: Any, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the student returned, by the names of the teacher; where a model returns others in training, by their order."""
    student = output_tensors(given)
    return student if set(wanted) <= set(student) else dict(zip(wanted, student.values(), strict=False))


def taught(learned: Sequence[Lesson], given: Any, wanted: Any, temperature: float) -> Tensor:
    """The mean of all lessons: the student's outputs against the teacher's. Raises: TaskError when an output is missing."""
    teacher, student = output_tensors(wanted), named_as(given, wanted)
    losses = []
    for lesson in learned:
        if lesson.name in teacher:
            if lesson.name not in student:
                raise TaskError(
                    f"the model returns no output '{lesson.name}' in training, so it cannot be taught; "
                    f"say outputs={{'{lesson.name}': 'ignore'}}."
                )
            losses.append(lesson.loss(student[lesson.name], teacher[lesson.name], temperature))
    if not losses:
        raise TaskError("the original returns none of the outputs that it gave for calibration; give inputs of the same form.")
    return torch.stack(losses).mean()
