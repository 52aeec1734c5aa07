"""Logits: the scores of classes come near to the teacher's as they are, without a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from enxuto.functional.distill import same_logits
from enxuto.task import Task
from enxuto.training.objective import Moment, Term
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import check_weight
from enxuto.training.terms.outputs import scores_of


@dataclass(frozen=True)
class Logits:
    """The mean squared difference of the scores of `output`, or of the first that has some.

    Raises: RangeError for a weight that is not above 0; TaskError, on the first batch, when no output has scores of classes.
    Source: Ba, Caruana 2014; Kim, Oh, Kim, Cho, Yun 2021, "Comparing Kullback-Leibler divergence and mean squared error loss".
    """

    weight: float = 1.0
    output: str = ""
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Term:
        """The term."""

        def term(moment: Moment) -> Tensor:
            return self.weight * same_logits(*scores_of(moment, self.output, self))

        return term
