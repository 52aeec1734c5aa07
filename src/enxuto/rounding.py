"""How values come to lie on a grid: each on the nearest of its values, or on the one that the data ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from torch import nn

from enxuto.errors import RangeError
from enxuto.evidence.moments import MomentsOf
from enxuto.functional.feedback import round_with_feedback
from enxuto.layers.grids import CodedTensor
from enxuto.layers.matrices import matrix_of, weight_of
from enxuto.surgery import Weight
from enxuto.task import Batch, Change

Rounding = Literal["nearest", "gptq"]


def check_rounding(rounding: str) -> None:
    """Raises: RangeError when the rounding is not known."""
    if rounding not in get_args(Rounding):
        raise RangeError(f"rounding={rounding!r} is not known; use one of {', '.join(map(repr, get_args(Rounding)))}.")


class SecondOrder:
    """Rounds a weight so that its products with the inputs of the calibration batches change least."""

    def __init__(self, model: nn.Module, batches: Iterable[Batch], weights: Sequence[Weight], seed: int) -> None:
        self.moments = MomentsOf(model, batches, weights, seed=seed)

    def __call__(self, weight: Weight, coded: CodedTensor) -> CodedTensor:
        """The weight on the grid of `coded`; `coded` itself where no product is known."""
        grid = coded.values()
        matrix, scale = (matrix_of(weight.module, each) for each in (weight.read(), grid.scale))
        made = matrix_of(weight.module, coded()).float()
        for each in self.moments(weight.key):
            size = (each.stop - each.start) // len(each.square)
            for part, square in enumerate(each.square):
                few = slice(each.start + part * size, each.start + (part + 1) * size)
                made[few] = round_with_feedback(matrix[few], square, scale[few], grid.largest, grid.entries, zero=grid.zero)
        return coded.recode(weight_of(weight.module, made, coded.shape))

    def left(self) -> list[Change]:
        """The weights that are on the nearest values after all, as no product of a matrix reads them."""
        return [Change(key, "rounded to nearest", why) for key, why in self.moments.missing.items()]
