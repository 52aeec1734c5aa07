"""How values come to lie on a grid: each on the nearest of its values, or on the one that the data ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import nn

from enxuto.errors import RangeError, RecipeError
from enxuto.evidence.influence import influence
from enxuto.evidence.moments import MomentsOf
from enxuto.evidence.samples import moments_bytes
from enxuto.functional.affine import largest_code
from enxuto.functional.feedback import Feedback
from enxuto.layers.affine import Affine, AffineTensor
from enxuto.layers.grids import CodedTensor
from enxuto.records import Change
from enxuto.sites import Site
from enxuto.task import Task

Rounding = Literal["nearest", "gptq"]
FITTED = "one scale, 8 bits"


class Rounded(Protocol):
    """Gives weights codes on the grid that was fitted to them."""

    def __call__(self, weight: Site, coded: CodedTensor) -> CodedTensor:
        """The weight on the grid of `coded`, which holds the nearest values."""

    def left(self) -> Sequence[Change]:
        """The weights that are on the nearest values after all, and why."""


def check_rounding(rounding: str) -> None:
    """Raises: RangeError when the rounding is not known."""
    if not isinstance(rounding, str) or rounding not in ROUNDINGS:
        raise RangeError(f"rounding={rounding!r} is not known; use one of {', '.join(map(repr, ROUNDINGS))}.")


def check_learned(step: object, rounding: str) -> None:
    """Raises: RecipeError for a rounding by the data in a training, where codes are the nearest to weights that learn."""
    if rounding != "nearest":
        raise RecipeError(
            f"{type(step).__name__}(rounding={rounding!r}) chooses codes for a network as it is, and while training they are the "
            f"nearest to weights that learn; leave rounding out, or put the step before or after the training."
        )


def rounded_by(
    rounding: Rounding, model: nn.Module, task: Task, weights: Sequence[Site], tolerance: float | None = None
) -> Rounded:
    """What rounds these weights of the model, in their order; with `tolerance`, on a scale for each as `Steps` says."""
    return ROUNDINGS[rounding](model, task, weights, None if tolerance is None else Steps(model, task, weights, tolerance))


class Steps:
    """One scale for each weight, such that a step of any value moves the outputs alike: by the fraction `tolerance` of their
    spread. What errors cost is then the same everywhere, which is where bits are spent best.

    Source: the equal slopes of Shoham, Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers", at high rates.
    """

    def __init__(self, model: nn.Module, task: Task, weights: Sequence[Site], tolerance: float) -> None:
        self.tolerance = tolerance
        self.influence, self.missing = influence(model, task.calibration, weights, task.seed, task.outputs)

    def __call__(self, weight: Site, coded: CodedTensor, answered: float = 1.0) -> CodedTensor:
        """The nearest values on this scale, where neighbours answer all but a part of each error; `coded` where nothing is known.

        A scale so fine that 8 bits do not hold the largest value is made as coarse as they need.
        """
        moved = self.influence.get(weight.key)
        values = weight.read()
        widest = float(torch.linalg.vector_norm(values.float(), math.inf)) if values.numel() else 0.0
        if moved is None or not widest:
            return coded
        scale = max(self.tolerance / (moved * math.sqrt(answered)), widest / largest_code(8))
        bits = next(bits for bits in range(2, 9) if largest_code(bits) + 0.5 >= widest / scale)
        return AffineTensor.of(Affine(bits, "tensor"), values, torch.tensor([scale], device=values.device))


class Nearest:
    """Leaves each value where it is nearest."""

    def __init__(self, model: nn.Module, task: Task, weights: Sequence[Site], steps: Steps | None = None) -> None:
        self.steps = steps

    def __call__(self, weight: Site, coded: CodedTensor) -> CodedTensor:
        """The nearest values on the scale of the steps, or `coded` itself."""
        return coded if self.steps is None else self.steps(weight, coded)

    def left(self) -> Sequence[Change]:
        """Those whose scale nothing is known of."""
        return [] if self.steps is None else [Change(key, FITTED, why) for key, why in self.steps.missing.items()]


class SecondOrder:
    """Rounds a weight so that its products with the inputs of the calibration batches change least."""

    def __init__(self, model: nn.Module, task: Task, weights: Sequence[Site], steps: Steps | None = None) -> None:
        self.moments = MomentsOf(model, task.calibration, weights, moments_bytes(task), task.seed)
        self.nearest = Nearest(model, task, weights, steps)

    def __call__(self, weight: Site, coded: CodedTensor) -> CodedTensor:
        """The weight on the grid of `coded`, or on the scale of the steps; the nearest values where no product is known."""
        answers = [(rows, Feedback.of(square, each.doubt)) for each in self.moments(weight.key) for rows, square in each.parts()]
        if self.nearest.steps is not None:
            coded = self.nearest.steps(weight, coded, _answered(answers))
        if not answers:
            return coded
        grid = coded.values()
        made = weight.matrix().to(torch.float32, copy=True)
        scale = weight.matrix(grid.scale)
        for rows, each in answers:
            each.round_(made[rows], scale[rows], grid.largest, grid.entries, zero=grid.zero)
        answers.clear()  # before anything else takes memory
        rounded = coded.recode(weight.shaped(made))
        rounded.dtype = coded.dtype
        return rounded

    def left(self) -> Sequence[Change]:
        """Those that no product of a matrix reads, and those whose scale nothing is known of."""
        unread = [Change(key, "rounded to nearest", why) for key, why in self.moments.missing.items()]
        return [*unread, *self.nearest.left()]


def _answered(answers: Sequence[tuple[slice, Feedback]]) -> float:
    """What is left of the square of an error when neighbours have answered it, of what it was: the mean over all columns."""
    alive = [(rows.stop - rows.start, each) for rows, each in answers if each.mean]
    total = sum(count for count, _ in alive)
    if not total:
        return 1.0
    left = sum(count * each.left for count, each in alive) / total
    return math.exp(left) / (sum(count * each.mean for count, each in alive) / total)


ROUNDINGS: Mapping[str, Callable[[nn.Module, Task, Sequence[Site], Steps | None], Rounded]] = {
    "nearest": Nearest,
    "gptq": SecondOrder,
}
