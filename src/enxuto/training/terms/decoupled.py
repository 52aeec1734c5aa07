"""Decoupled: soft labels whose two parts, the target class and all others, have weights of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from enxuto.checks import named, within
from enxuto.errors import RangeError
from enxuto.functional.distill import decoupled
from enxuto.task import Task
from enxuto.training.objective import Moment, Term
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import check_weight
from enxuto.training.terms.outputs import scores_of


@dataclass(frozen=True)
class Decoupled:
    """`alpha` times the divergence of how sure the target class is, and `beta` times that among the others, which soft labels
    hear least where the teacher is surest. The target is the label, or without one the teacher's own choice.

    It stands in place of soft labels: use it with `Recover(teacher=0)`. Raises: RangeError for numbers out of range; TaskError,
    on the first batch, when no output has scores of classes.
    Source: Zhao, Cui, Song, Qiu, Liang 2022, "Decoupled knowledge distillation".
    """

    weight: float = 0.5
    alpha: float = 1.0
    beta: float = 4.0
    temperature: float = 4.0
    output: str = ""
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self, self.weight)
        for name, interval in (("alpha", "[0, inf)"), ("beta", "[0, inf)"), ("temperature", "(0, inf)")):
            value = getattr(self, name)
            if not within(value, interval):
                raise RangeError(f"{named(name, value)} of Decoupled is not in {interval}; use {getattr(type(self), name)}.")

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Term:
        """The term."""

        def term(moment: Moment) -> Tensor:
            ours, theirs = scores_of(moment, self.output, self)
            targets = _targets(moment.targets, theirs)
            loss = decoupled(ours, theirs, targets, alpha=self.alpha, beta=self.beta, temperature=self.temperature)
            return self.weight * loss

        return term


def _targets(labels: Any, scores: Tensor) -> Tensor:
    """The label of each row where there is one, else the class that the teacher would choose."""
    chosen = scores.argmax(-1)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != chosen.shape:
        return chosen
    known = (labels >= 0) & (labels < scores.shape[-1])  # -100 says that a place has no label
    return torch.where(known, labels, chosen).long()
