"""L0: a gate before every weight, which a training opens and closes by chance, and at last for good."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from enxuto.functional.keep import check_sparsity
from enxuto.layers.gates import Concrete
from enxuto.select import Patterns
from enxuto.task import Task
from enxuto.training.teacher import Teacher
from enxuto.training.terms.gated import Gated

PRESSURE = 0.3  # of the loss for all weights, at first


@dataclass(frozen=True)
class L0:
    """Closes gates before the weights until about `sparsity` of them are zero; what is closed in the end ships as exact zeros.

    The record tells the sparsity that came of it. Raises: RangeError for a sparsity outside [0, 1); RecipeError beside another
    term with gates for the same layers.
    Source: Louizos, Welling, Kingma 2018, "Learning sparse neural networks through L0 regularization". Deviation: the weight
    of the term is sought while it trains.
    """

    sparsity: float = 0.9
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Gated:
        """The term, with a gate before every weight."""
        return Gated(student, self.layers, Concrete, self.sparsity, PRESSURE)
