"""SoftThreshold: each layer learns the size below which its weights are zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from enxuto.functional.keep import check_sparsity
from enxuto.layers.gates import LearnedThreshold
from enxuto.select import Patterns
from enxuto.task import Task
from enxuto.training.teacher import Teacher
from enxuto.training.terms.gated import Gated

PRESSURE = 1e-3  # weight decay of what the thresholds are made of, at first


@dataclass(frozen=True)
class SoftThreshold:
    """Raises a threshold in each layer until about `sparsity` of the weights are zero; the loss says which layers bear it.

    What is left is smaller by the threshold, in training as when it ships. The record tells the sparsity that came of it. Raises:
    RangeError for a sparsity outside [0, 1); RecipeError beside another term with gates for the same layers.
    Source: Kusupati et al. 2020, "Soft threshold weight reparameterization for learnable sparsity" (STR). Deviation: the weight
    decay of the thresholds is sought while it trains.
    """

    sparsity: float = 0.9
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Gated:
        """The term, with a threshold for every weight."""
        return Gated(student, self.layers, LearnedThreshold, self.sparsity, PRESSURE)
