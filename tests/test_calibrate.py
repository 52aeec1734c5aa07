"""The ranges that grids of layer inputs are made from: everything measured, no mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from enxuto.calibrate import input_ranges, value_range

INF = float("inf")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-3.4e38, -1.0, 2.0], (-1.0, 2.0)),
        ([-INF, -1.0, 2.0], (-1.0, 2.0)),
        ([-10004.0, -9996.0, -1.0, 2.0], (-1.0, 2.0)),
        ([-1e9, 1e9, 0.5], (0.5, 0.5)),
        ([-INF, -3.4e38], (0.0, 0.0)),
        ([-1e9, -1.0, 500.0, 30000.0, 50000.0], (-1.0, 50000.0)),
        ([-1.0, 30000.0, 50000.0], (-1.0, 50000.0)),  # incomes
        ([-20000.0, -300.0], (-20000.0, -300.0)),
        ([30000.0, 30000.0], (30000.0, 30000.0)),
        ([], (0.0, 0.0)),
    ],
)
def test_masks_are_no_values_and_large_values_are_no_masks(values: list[float], expected: tuple[float, float]) -> None:
    assert value_range(torch.tensor(values)) == expected


def test_the_range_of_a_layer_input_leaves_its_mask_out() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.masked_fill(x > 2, -1e9))

    x = torch.tensor([[-1.0, 0.5, 2.0, 3.0]])
    assert input_ranges(Masked(), [x, x / 2])["layer"] == (-1.0, 2.0)
