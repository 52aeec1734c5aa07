"""How far outputs moved: in units of their spread, of every output, whole numbers too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from enxuto.evidence.outputs import Answers

BATCHES = [torch.randn(30, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


class Said(nn.Module):
    """A network that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def moved(one, other) -> float:
    return Answers(Said(one), BATCHES).moved(Said(other))


def test_it_is_in_units_of_the_spread_whatever_the_scale_and_the_offset():
    noise = 0.1 * torch.randn(30, 4, generator=torch.Generator().manual_seed(9))
    assert moved(lambda x: x, lambda x: x + noise) == pytest.approx(0.1, rel=0.2)
    for scale in (1e-6, 1e6):
        same = moved(lambda x, s=scale: x * s + 50 * s, lambda x, s=scale: (x + noise) * s + 50 * s)
        assert same == pytest.approx(moved(lambda x: x, lambda x: x + noise), rel=1e-2)
    assert moved(lambda x: x, lambda x: x) == 0
    assert moved(lambda x: x + 7, lambda x: x.mean() + 0 * x + 7) == pytest.approx(1, rel=0.1)


def test_the_output_that_moved_farthest_counts():
    assert moved(lambda x: {"a": x, "b": x}, lambda x: {"a": x, "b": 2 * x}) == pytest.approx(1, rel=0.1)


def test_of_whole_numbers_the_share_that_changed_counts():
    half = torch.arange(30) % 2 == 0
    assert moved(lambda x: x.argmax(1), lambda x: torch.where(half, x.argmax(1), 9)) == pytest.approx(0.5)


def test_other_shapes_and_values_that_are_not_finite_are_infinitely_far():
    assert moved(lambda x: x, lambda x: x[:, :2]) == math.inf
    assert moved(lambda x: x, lambda x: x / 0) == math.inf
    assert moved(lambda x: {"a": x, "b": x}, lambda x: {"a": x}) == math.inf
