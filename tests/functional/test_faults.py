"""Figures of faults, at sizes that leave a type, and where there is nothing to compare."""

from __future__ import annotations

import pytest
import torch

from enxuto.functional.faults import beyond_neighbours, largest_beside, peak


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_figures_do_not_depend_on_the_scale(scale):
    assert peak(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]]) * scale) == (1, pytest.approx(2.0))
    assert largest_beside(torch.tensor([1.0, 2.0, 60.0, 3.0, 2.0]) * scale) == (2, pytest.approx(30.0))
    assert beyond_neighbours([scale, 6 * scale, scale]) == pytest.approx([2 / 7, 6.0, 2 / 7])


def test_where_all_is_zero_nothing_stands_out():
    assert peak(torch.zeros(3, 4))[1] == 1
    assert largest_beside(torch.zeros(3)) == (0, 1.0)
    assert beyond_neighbours([0.0, 0.0, 0.0]) == [1.0, 1.0, 1.0]
    assert beyond_neighbours([3.0]) == [1.0]
    assert beyond_neighbours([]) == []
