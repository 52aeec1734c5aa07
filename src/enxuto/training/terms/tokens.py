"""Tokens: hidden states of a transformer come near to the teacher's, token by token; padding is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from enxuto.checks import check_flags
from enxuto.functional.features import same_tokens
from enxuto.task import Task
from enxuto.training.inside import Layers, checked_layers
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import Between, check_weight, projected
from enxuto.training.terms.padding import counting


@dataclass(frozen=True)
class Tokens:
    """The squared difference of hidden states [batch, tokens, width] at `layers`, in units of the variance of the teacher's.

    Where the inputs are a dict with an "attention_mask", what it says is padding does not count. `projection` as in `Features`.
    Raises: RangeError for a weight that is not above 0; LayerError when no layer is there or it does not run; ShapeError where
    shapes differ and no projection helps.
    Source: Jiao et al. 2020, "TinyBERT: distilling BERT for natural language understanding".
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
        return projected(self.layers, counting(same_tokens), self.weight, student, task, teacher, self)
