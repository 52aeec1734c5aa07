"""Paired statistics: against the obvious, and what chance explains stays."""

from __future__ import annotations

import pytest
import torch

from enxuto.functional.paired import Paired, row_moments


def paired(before: torch.Tensor, after: torch.Tensor, parts: int = 1) -> Paired:
    made = Paired()
    for one, other in zip(before.chunk(parts), after.chunk(parts), strict=True):
        made.add(row_moments(one, 1), row_moments(other, 1), one.numel() // one.shape[1])
    return made


@pytest.mark.parametrize("shape", [(50, 6), (50, 6, 9), (50, 6, 4, 5)])
def test_moments_are_those_of_all_values_however_they_come(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    before = torch.randn(shape) + torch.arange(6.0).view(1, 6, *[1] * (len(shape) - 2))
    after = 3 * before + 2
    for parts in (1, 5):
        found = paired(before, after, parts).moved()
        flat = before.transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(found.before, flat.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.spread, flat.std(1, correction=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.shift, 2 * flat.mean(1) + 2, rtol=0.05, atol=0.3)
        torch.testing.assert_close(found.stretch, torch.full((6,), 9.0).log().double(), rtol=1e-5, atol=1e-5)


def test_the_same_values_have_not_moved() -> None:
    values = 5 + torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert not paired(values, values).moved().far
    assert not paired(values, values * (1 + 1e-6)).moved().far
    assert paired(values, values + 0.1).moved().far


def test_differences_that_scatter_around_nothing_are_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(20):
        before = torch.randn(3, 16, generator=generator)
        found = paired(before, before + 0.3 * torch.randn(3, 16, generator=generator)).moved()
        parts.append(float((found.shift / found.spread).abs().max()))
    assert max(parts) == 0.0
    before = torch.randn(3, 16, 400, generator=generator)
    many = paired(before, before + 1).moved()  # each sample has many values, which all say the same
    assert float((many.shift - 1).abs().max()) < 0.01


def test_one_or_two_samples_show_nothing_and_channels_without_values_stay_finite() -> None:
    values = torch.randn(2, 4, 9)
    assert not paired(values, values + 1).moved().far
    dead = torch.zeros(8, 4)
    found = paired(torch.randn(8, 4), dead).moved()
    assert all(bool(torch.isfinite(each).all()) for each in (found.shift, found.stretch, found.spread))
    assert not paired(dead, dead).moved().far


def test_values_whose_squares_are_too_large_for_32_bits_count() -> None:
    values = 1e25 * torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0))
    found = paired(values, 2 * values).moved()
    torch.testing.assert_close(found.stretch, torch.full((3,), 4.0).log().double(), rtol=1e-4, atol=1e-4)
