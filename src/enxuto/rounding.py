"""How values come to lie on a grid: each on the nearest of its values, or on the one that the data ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import nn

from enxuto.errors import RangeError
from enxuto.evidence.moments import MomentsOf
from enxuto.functional.feedback import round_with_feedback_
from enxuto.layers.grids import CodedTensor
from enxuto.layers.matrices import matrix_of, weight_of
from enxuto.surgery import Weight
from enxuto.task import Change, Task

Rounding = Literal["nearest", "gptq"]


class Rounded(Protocol):
    """Gives weights codes on the grid that was fitted to them."""

    def __call__(self, weight: Weight, coded: CodedTensor) -> CodedTensor:
        """The weight on the grid of `coded`, which holds the nearest values."""

    def left(self) -> Sequence[Change]:
        """The weights that are on the nearest values after all, and why."""


def check_rounding(rounding: str) -> None:
    """Raises: RangeError when the rounding is not known."""
    if rounding not in ROUNDINGS:
        raise RangeError(f"rounding={rounding!r} is not known; use one of {', '.join(map(repr, ROUNDINGS))}.")


def rounded_by(rounding: Rounding, model: nn.Module, task: Task, weights: Sequence[Weight]) -> Rounded:
    """What rounds these weights of the model, in their order."""
    return ROUNDINGS[rounding](model, task, weights)


class Nearest:
    """Leaves each value where it is nearest."""

    def __init__(self, model: nn.Module, task: Task, weights: Sequence[Weight]) -> None:
        pass

    def __call__(self, weight: Weight, coded: CodedTensor) -> CodedTensor:
        """`coded` itself."""
        return coded

    def left(self) -> Sequence[Change]:
        """None."""
        return ()


class SecondOrder:
    """Rounds a weight so that its products with the inputs of the calibration batches change least."""

    def __init__(self, model: nn.Module, task: Task, weights: Sequence[Weight]) -> None:
        self.moments = MomentsOf(model, task.calibration, weights, seed=task.seed)

    def __call__(self, weight: Weight, coded: CodedTensor) -> CodedTensor:
        """The weight on the grid of `coded`; `coded` itself where no product is known."""
        found = self.moments(weight.key)
        if not found:
            return coded
        grid = coded.values()
        made = matrix_of(weight.module, weight.read()).to(torch.float32, copy=True)
        scale = matrix_of(weight.module, grid.scale)
        for each in found:
            for few, square in each.parts():
                round_with_feedback_(made[few], square, scale[few], grid.largest, grid.entries, zero=grid.zero)
        rounded = coded.recode(weight_of(weight.module, made, coded.shape))
        rounded.dtype = coded.dtype
        return rounded

    def left(self) -> Sequence[Change]:
        """Those that no product of a matrix reads."""
        return [Change(key, "rounded to nearest", why) for key, why in self.moments.missing.items()]


ROUNDINGS: Mapping[str, Callable[[nn.Module, Task, Sequence[Weight]], Rounded]] = {"nearest": Nearest, "gptq": SecondOrder}
