"""What the scores of weights are made of: their values, and for some what the calibration batches say of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.evidence.gradients import squared_gradients
from enxuto.evidence.norms import squared_inputs
from enxuto.functional.scores import lamp, magnitude, taylor, wanda
from enxuto.records import Change
from enxuto.sites import Site
from enxuto.task import Task

Evidence = Callable[[nn.Module, Iterable[Batch], Sequence[Site], int], tuple[dict[str, Tensor], dict[str, str]]]
"""Of a model, batches, weights and a seed: a tensor for each weight, and of weights without any, why."""


@dataclass(frozen=True)
class Score:
    """A function of the values and, where `evidence` gathers it, of a tensor of the same shape beside them."""

    of: Callable[..., Tensor]
    evidence: Evidence | None = None


SCORES: Mapping[str, Score] = {
    "magnitude": Score(magnitude),
    "lamp": Score(lamp),
    "wanda": Score(wanda, squared_inputs),
    "taylor": Score(taylor, squared_gradients),
}


class Scored:
    """Scores some weights of a model; by magnitude where the calibration batches say nothing of one."""

    def __init__(self, scores: str, model: nn.Module, task: Task, weights: Sequence[Site]) -> None:
        self.score, self.evidence, self.missing = SCORES[scores], dict[str, Tensor](), dict[str, str]()
        if self.score.evidence is not None:
            self.evidence, self.missing = self.score.evidence(model, task.calibration, weights, task.seed)

    def __call__(self, weight: Site, values: Tensor) -> Tensor:
        """How much each of these values of a weight matters. Shapes: as the weight."""
        if self.score.evidence is None:
            return self.score.of(values)
        if weight.key in self.missing:
            return magnitude(values)
        return self.score.of(values, self.evidence[weight.key])

    def forget(self, weight: Site) -> None:
        """Gives back the memory of what the batches said of a weight that will not be scored again."""
        self.evidence.pop(weight.key, None)

    def left(self) -> list[Change]:
        """The weights that are scored by magnitude after all, and why."""
        return [Change(key, "scored by magnitude, compared within itself", why) for key, why in self.missing.items()]


def in_training(scores: str) -> Callable[[Tensor], Tensor]:
    """The score of values while they are trained, when nothing is asked of the batches: magnitude in place of what would be."""
    return magnitude if SCORES[scores].evidence is not None else SCORES[scores].of
