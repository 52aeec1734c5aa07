"""Factors for channels: the equations of the papers, and what is dead."""

import torch

from enxuto.functional.equalize import EQUAL_RANGES, EQUAL_ROWS, protected, smoothed, whole_powers

W, R, X = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 16.0, 1.0]), torch.tensor([2.0, 8.0, 32.0])


def even(values: torch.Tensor) -> bool:
    return torch.allclose(values / values[0], torch.ones_like(values))


def test_each_balance_makes_even_what_its_paper_says():
    s = EQUAL_RANGES(W, R, None)
    assert even((W * s) / (R / s))
    assert even(W * EQUAL_ROWS(W, None, None))
    assert even(R / smoothed(0.0)(None, R, X))
    assert even(X * smoothed(1.0)(None, R, X))
    s = smoothed(0.5)(None, R, X)
    assert even((X * s) / (R / s))
    assert even(X.sqrt() * protected(0.5)(None, None, X))


def test_factors_are_one_on_average_and_so_are_those_of_dead_channels():
    for balance in (EQUAL_RANGES, smoothed(0.25)):
        factors = balance(W, R, X)
        assert torch.allclose(factors.log2().mean(), torch.zeros((), dtype=torch.float64), atol=1e-9)
        dead = balance(torch.cat([W, torch.zeros(1)]), torch.cat([R, torch.zeros(1)]), torch.cat([X, torch.zeros(1)]))
        assert torch.equal(dead, torch.cat([factors, torch.ones(1, dtype=torch.float64)]))
    assert EQUAL_RANGES(torch.zeros(3), R, None) is None
    assert EQUAL_RANGES(None, R, X) is None


def test_whole_powers_change_no_digit():
    factors = whole_powers(torch.rand(50, dtype=torch.float64) * 100)
    values = torch.randn(50).half()
    assert torch.equal((values.double() * factors).float() / factors.float(), values.float())
