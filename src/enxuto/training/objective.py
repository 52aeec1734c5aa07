"""What a training makes small: a sum of terms, each a function of one batch and what became of it.

`Recover(terms=[...])` holds aims, which are plain data; `begin` makes the term of one training from each.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.errors import RecipeError, TaskError
from enxuto.functional.likeness import Spread
from enxuto.surgery import borrowed
from enxuto.task import Task
from enxuto.training.examples import own_loss
from enxuto.training.inside import Inside, check_reached
from enxuto.training.lessons import Lesson, lessons, settled, taught
from enxuto.training.state import recall_, remembered
from enxuto.training.teacher import INSIDE, Teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Moment:
    """One batch of a training as terms see it; `progress` is the part of the training that is done, 0...1."""

    student: nn.Module
    outputs: Any
    inputs: Batch
    targets: Any
    teacher: Teacher | None = None
    progress: float = 0.0
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    """What the layers of the student returned that terms look at, by path."""

    @functools.cached_property
    def wanted(self) -> Mapping[str, Tensor]:
        """What the teacher returns for the inputs, by name; it is asked once, however many terms look."""
        return {name: tensor for name, tensor in self._answer.items() if not name.startswith(INSIDE)}

    @functools.cached_property
    def wanted_inside(self) -> Mapping[str, Tensor]:
        """What the layers of the teacher returned that terms look at, by path."""
        return {name.removeprefix(INSIDE): tensor for name, tensor in self._answer.items() if name.startswith(INSIDE)}

    @functools.cached_property
    def _answer(self) -> Mapping[str, Tensor]:
        assert self.teacher is not None
        return self.teacher(self.inputs, self.progress)


class Term(Protocol):
    """One number to make small, in units of the loss; it depends on the student or on its outputs.

    A function will do; the parameters of one that is a module learn with the student's, and end with the training.
    """

    def __call__(self, moment: Moment, /) -> Tensor: ...


@runtime_checkable
class Aim(Protocol):
    """What a user writes among `terms=`: a frozen dataclass that gives the term of one training.

    Where its class says `taught = True`, there is a teacher.
    """

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Term: ...


@runtime_checkable
class Looking(Protocol):
    """A term that looks at what layers return: those of the student in `student_paths`, of the teacher in `teacher_paths`."""

    student_paths: Sequence[str]
    teacher_paths: Sequence[str]


@runtime_checkable
class Telling(Protocol):
    """A term that has something to say of a training that is over: figures for the record, and what it missed, or nothing."""

    def told(self) -> tuple[dict[str, float], str]: ...


def checked_aims(terms: object) -> tuple[Aim, ...]:
    """The aims among `terms=` as a tuple. Raises: RecipeError for anything else."""
    if isinstance(terms, (str, Mapping)) or not isinstance(terms, Iterable):
        raise RecipeError(f"terms={terms!r} is no list of terms; write for example terms=[ex.terms.Features('layer1')].")
    found = tuple(terms)
    for aim in found:
        if isinstance(aim, type) or not (isinstance(aim, Aim) and is_dataclass(aim)):
            name = f"the class {aim.__name__}" if isinstance(aim, type) else repr(aim)[:60]
            raise RecipeError(
                f"{name} in terms= is no term; write an instance as ex.terms.Features('layer1'), or one of your own: a frozen "
                "dataclass with begin(student, task, teacher)."
            )
    return found


@dataclass
class Objective:
    """What labels and teacher ask for together, and further terms beside them. The teacher is the original, if one is needed.

    The loss is `share` * teacher + (1 - `share`) * labels + the sum of all terms. Where there are no labels, teacher + terms; and
    terms alone where they are taught and `share` is 0.
    """

    task: Task
    share: float
    temperature: float
    aims: Sequence[Aim] = ()
    epochs: float = 1.0
    teacher: Teacher | None = field(init=False)
    learned: tuple[Lesson, ...] = field(init=False, default=())
    terms: tuple[Term, ...] = field(init=False, default=())
    inside: Inside = field(init=False, default_factory=lambda: Inside(()))
    sound: bool = field(init=False, default=False)  # the terms gave what can be learned from

    def __post_init__(self) -> None:
        task = self.task
        asked = any(getattr(aim, "taught", False) for aim in self.aims)
        said = self.share or ((task.train is None or task.loss is None) and not asked)
        needed = said or asked
        self.teacher = Teacher(borrowed(task.model).eval(), self.epochs) if needed else None
        if said and self.teacher is not None:
            self.learned = lessons(task, self.teacher.module)

    @contextmanager
    def begun(self, student: nn.Module) -> Iterator[Objective]:
        """With the terms for this student, which look inside it until the block ends.

        Raises: whatever a term that cannot be refuses, before anything is trained.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.task.seed)
            self.terms = tuple(aim.begin(student, self.task, self.teacher) for aim in self.aims)
        looking = [term for term in self.terms if isinstance(term, Looking)]
        self.inside = Inside(path for term in looking for path in term.student_paths)
        if self.teacher is not None:
            self.teacher.look_(path for term in looking for path in term.teacher_paths)
        with self.inside.watching(student):
            yield self

    @property
    def modules(self) -> list[nn.Module]:
        """The terms that have parameters of their own, which learn with the student's."""
        return [term for term in self.terms if isinstance(term, nn.Module)]

    def moment(self, student: nn.Module, outputs: Any, inputs: Batch, targets: Any, progress: float = 0.0) -> Moment:
        """What terms see of a batch that the student was just given."""
        short = (torch.float16, torch.bfloat16)
        inside = {path: each.float() if each.dtype in short else each for path, each in self.inside.take().items()}
        return Moment(student, outputs, inputs, targets, self.teacher, progress, inside)

    def __call__(self, moment: Moment) -> Tensor:
        """The loss of a batch: one number.

        Raises: TaskError or LayerError, on the first batch, for a term that nothing can be learned from.
        """
        loss, parts = self._said(moment), []
        for aim, term in zip(self.aims, self.terms, strict=True):
            if not self.sound and isinstance(term, Looking):
                check_reached(term.student_paths, moment.inside, "student", aim)
                check_reached(term.teacher_paths, moment.wanted_inside if term.teacher_paths else {}, "original", aim)
            value = term(moment)
            if not self.sound:
                _check_value(aim, term, value, moment.student)
                parts.append(f"{type(aim).__name__} {float(value.detach()):.3g}")
            loss = loss + value
        if parts:
            logger.info("the first batch's loss of %.3g has in it %s", float(loss.detach()), ", ".join(parts))
        self.sound = True
        return loss

    def _said(self, moment: Moment) -> Tensor:
        own = own_loss(self.task, moment.outputs, moment.inputs, moment.targets)
        if own is not None and not self.share:
            return own
        if own is None and not self.learned:
            return torch.zeros(())
        told = taught(self.learned, moment.outputs, moment.wanted, self.temperature)
        return told if own is None else self.share * told + (1 - self.share) * own

    def settle_(self, moment: Moment) -> None:
        """Lets the user's own loss say, on a first batch, which outputs are scores of classes."""
        loss = self.task.loss
        if loss is not None and own_loss(self.task, moment.outputs, moment.inputs, moment.targets) is not None:
            self.learned = settled(self.learned, loss, moment.outputs, moment.targets)

    def state(self) -> dict[str, Any]:
        """What was found out since the training began, and what terms remember."""
        return {
            "learned": [(lesson.kind, lesson.open) for lesson in self.learned],
            "sound": self.sound,
            "teacher": None if self.teacher is None else self.teacher.state(),
            "terms": [remembered(term) for term in self.terms],
        }

    def resume_(self, state: Mapping[str, Any]) -> None:
        """Knows it again."""
        told = zip(self.learned, state["learned"], strict=True)
        self.learned = tuple(replace(lesson, kind=kind, open=unsure) for lesson, (kind, unsure) in told)
        self.sound = state["sound"]
        if self.teacher is not None:
            self.teacher.resume_(state["teacher"])
        for term, each in zip(self.terms, state["terms"], strict=True):
            recall_(term, each)

    def bare_(self) -> Objective:
        """Without values and batches, for a plan, which asks for shapes alone and copies all there is."""
        self.task = copy.copy(self.task)
        for name in ("calibration", "train"):
            object.__setattr__(self.task, name, None if getattr(self.task, name) is None else ())
        for name in ("evaluate", "test"):
            object.__setattr__(self.task, name, None)
        self.learned = tuple(replace(each, spread=Spread(None, 1.0)) for each in self.learned)
        return self


def _check_value(aim: Aim, term: Term, value: object, student: nn.Module) -> None:
    name = type(aim).__name__
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TaskError(f"the term {name} gave {given}; it must be one number, as a tensor: take the mean over the batch.")
    learning = [each for each in student.parameters() if each.requires_grad]
    depends = value.requires_grad
    if depends and isinstance(term, nn.Module) and any(each.requires_grad for each in term.parameters()):
        slopes = torch.autograd.grad(value, learning, retain_graph=True, allow_unused=True)
        depends = any(each is not None for each in slopes)
    if not depends:
        raise TaskError(
            f"the term {name} gave a number that does not depend on the student, so nothing can be learned from it; compute it "
            "from moment.outputs, moment.inside or parameters of the student, without .detach()."
        )
