"""TokenRelations: tokens look to each other as they do in the teacher, by hidden states of any width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from enxuto.functional.features import same_token_relations
from enxuto.task import Task
from enxuto.training.inside import Layers, checked_layers
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import Between, check_weight, pairs_and_shapes, unlike
from enxuto.training.terms.padding import counting


@dataclass(frozen=True)
class TokenRelations:
    """The divergence of how each token attends to the others by hidden states [batch, tokens, width] at `layers`; no projection
    is needed. Padding is left out as in `Tokens`.

    Raises: RangeError for a weight that is not above 0; LayerError when no layer is there or it does not run; ShapeError where
    there are no tokens, or not as many.
    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM: deep self-attention distillation".
    """

    layers: Layers
    weight: float = 1.0
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers, self))
        check_weight(self, self.weight)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Between:
        """The term."""
        assert teacher is not None
        pairs, shapes = pairs_and_shapes(self.layers, student, task, teacher, self)
        for (one, other), (given, wanted) in zip(pairs.items(), shapes, strict=True):
            if not len(given) == len(wanted) == 3 or given[1] != wanted[1]:
                raise unlike(self, one, given, other, wanted, "name layers that return [batch, tokens, width] of as many tokens")
        return Between(pairs, counting(same_token_relations), self.weight)
