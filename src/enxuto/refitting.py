"""What stays of a weight answers for what goes: chosen in rounds, each followed by a refit to the inputs that it meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from enxuto.evidence.crossed import CrossedOf
from enxuto.functional.refit import refit
from enxuto.layers.grids import CodedTensor
from enxuto.records import Change
from enxuto.sites import Site
from enxuto.task import Task

ROUNDS = (0.488, 0.784, 0.936, 0.992, 1.0)  # how much of what goes has gone: the cubic of Zhu, Gupta 2017, at fifths
STEPS, LAST_STEPS = 10, 50  # of a refit: within the rounds, and at the end


class Refitted:
    """Prunes weights of a copy, one after the other, so that with the inputs that they meet there by now they give what they
    gave in the model: what went wrong before a weight is made good by it too, as far as it can."""

    def __init__(self, model: nn.Module, task: Task, copy: nn.Module, weights: Sequence[Site]) -> None:
        self.why = {weight.key: why for weight in weights if (why := _why_not(weight))}
        able = [weight for weight in weights if weight.key not in self.why]
        self.moments = CrossedOf(model, copy, task.calibration, able, task.seed)

    def __call__(self, weight: Site, keep: Tensor, choose: Callable[[Tensor, float], Tensor]) -> Tensor:
        """The pruned values: what `choose` keeps at full strength, after rounds at less; `keep` of the values as they are
        where no product is known. Shapes: as the weight."""
        values = weight.read()
        found = [] if weight.key in self.why else self.moments(weight.key)
        if not found or not bool(keep.any()):
            return values.where(keep, 0.0)
        matrix = weight.matrix(values).float()
        made = matrix.clone()
        for strength in ROUNDS:
            keep = choose(weight.shaped(made), strength)
            stays = weight.matrix(keep) & (made != 0)
            made = made.where(stays, 0.0)
            steps = STEPS if strength < 1 else LAST_STEPS
            for own, across in found:
                rows, shape = slice(own.start, own.stop), (len(own.square), -1, matrix.shape[1])
                parts = [tensor[rows].view(shape) for tensor in (matrix, made, stays)]
                made[rows] = refit(parts[0], parts[1], parts[2], own.square, across.square, steps).view_as(made[rows])
        return weight.shaped(made).to(values.dtype)

    def left(self) -> list[Change]:
        """The weights that keep their values after all, and why."""
        missing = {**self.why, **self.moments.missing}
        return [Change(key, "what stays is not refit", why) for key, why in missing.items()]


def _why_not(weight: Site) -> str:
    if isinstance(weight.tensor, CodedTensor):
        return "its values lie on a grid"
    if weight.looked_up:
        return "its rows are looked up, and nothing in them answers for what goes"
    return ""
