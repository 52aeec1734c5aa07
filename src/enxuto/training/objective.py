"""What a training makes small: a sum of terms, each a function of one batch and what became of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.functional.likeness import Spread
from enxuto.surgery import borrowed
from enxuto.task import Task
from enxuto.training.examples import own_loss
from enxuto.training.lessons import Lesson, lessons, settled, taught
from enxuto.training.teacher import Teacher


@dataclass(frozen=True, eq=False)
class Moment:
    """One batch of a training as terms see it; `progress` is the part of the training that is done, 0...1."""

    student: nn.Module
    outputs: Any
    inputs: Batch
    targets: Any
    teacher: Teacher | None = None
    progress: float = 0.0

    @functools.cached_property
    def wanted(self) -> Mapping[str, Tensor]:
        """What the teacher returns for the inputs, by name; it is asked once, however many terms look."""
        assert self.teacher is not None
        return self.teacher(self.inputs, self.progress)


Term = Callable[[Moment], Tensor]
"""One number to make small, in units of the loss; it depends on the student or on its outputs."""


@dataclass
class Objective:
    """What labels and teacher ask for together, and further terms beside them. The teacher is the original, if one is needed.

    `share` is the teacher's part of what both say; where there are no labels it is all.
    """

    task: Task
    share: float
    temperature: float
    terms: Sequence[Term] = ()
    epochs: float = 1.0
    teacher: Teacher | None = field(init=False)
    learned: tuple[Lesson, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        task = self.task
        needed = self.share or task.train is None or task.loss is None
        self.teacher = Teacher(borrowed(task.model).eval(), self.epochs) if needed else None
        if self.teacher is not None:
            self.learned = lessons(task, self.teacher.module)

    def __call__(self, moment: Moment) -> Tensor:
        """The loss of a batch: one number."""
        return sum((term(moment) for term in self.terms), start=self._said(moment))

    def _said(self, moment: Moment) -> Tensor:
        own = own_loss(self.task, moment.outputs, moment.inputs, moment.targets)
        if own is not None and not self.share:
            return own
        told = taught(self.learned, moment.outputs, moment.wanted, self.temperature)
        return told if own is None else self.share * told + (1 - self.share) * own

    def settle_(self, moment: Moment) -> None:
        """Lets the user's own loss say, on a first batch, which outputs are scores of classes."""
        loss = self.task.loss
        if loss is not None and own_loss(self.task, moment.outputs, moment.inputs, moment.targets) is not None:
            self.learned = settled(self.learned, loss, moment.outputs, moment.targets)

    def bare_(self) -> Objective:
        """Without values, for a plan, which asks for shapes alone."""
        self.learned = tuple(replace(each, spread=Spread(None, 1.0)) for each in self.learned)
        return self
