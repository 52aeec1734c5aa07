"""GroupLasso: whole rows or columns of weights shrink together, for a step that takes them out afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from enxuto.errors import RangeError
from enxuto.functional.norms import group_norms
from enxuto.layers.rehearsal import Rehearsal
from enxuto.select import Patterns
from enxuto.sites import sites
from enxuto.task import Task
from enxuto.training.objective import Moment, Term
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import check_weight


@dataclass(frozen=True)
class GroupLasso:
    """`weight` times the lengths of all rows (one output each), or `by="columns"` (one input each), of the chosen weights.

    They shrink and do not vanish: `PruneChannels` after the training takes out what has become small. Raises: RangeError for a
    weight that is not above 0, or another word.
    Source: Yuan, Lin 2006, "Model selection and estimation in regression with grouped variables"; Wen et al. 2016, "Learning
    structured sparsity in deep neural networks".
    """

    weight: float = 1e-4
    by: Literal["rows", "columns"] = "rows"
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        check_weight(self, self.weight)
        if self.by not in ("rows", "columns"):
            raise RangeError(f"by={self.by!r} is not known; use 'rows' for outputs or 'columns' for inputs.")

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Term:
        """The term."""
        chosen = sites(student, self.layers)

        def term(moment: Moment) -> Tensor:
            lengths = [group_norms(site.matrix(_learning(site.tensor)), rows=self.by == "rows") for site in chosen]
            return self.weight * torch.stack([each.sum() for each in lengths]).sum()

        return term


def _learning(tensor: Tensor | nn.Module) -> Tensor:
    """What of a weight learns: the parameter itself, or its leaf where something stays."""
    if isinstance(tensor, Rehearsal):
        return tensor.leaf if tensor.keep is None else tensor.leaf * tensor.ones(tensor.keep)
    assert isinstance(tensor, Tensor)
    return tensor
