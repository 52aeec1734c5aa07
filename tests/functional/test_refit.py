"""The refit against least squares solved row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enxuto.functional import refit as module
from enxuto.functional.refit import DAMPING


def case(samples: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 24, generator=generator) @ torch.randn(24, 24, generator=generator) * scale
    matrix = torch.randn(200, 24, generator=generator)
    return matrix, torch.rand(200, 24, generator=generator) > 0.6, inputs.T @ inputs / samples


def refit(matrix: Tensor, start: Tensor, keep: Tensor, square: Tensor, steps: int) -> Tensor:
    """Of one group."""
    return module.refit(matrix[None], start[None], keep[None], square[None], square[None], steps)[0]


def test_groups_are_refit_each_by_its_own_inputs() -> None:
    cases = [case(samples) for samples in (30, 300, 3000)]
    matrices, keeps, squares = (torch.stack(each) for each in zip(*cases, strict=True))
    together = module.refit(matrices, matrices, keeps, squares, squares, 20)
    for made, (matrix, keep, square) in zip(together, cases, strict=True):
        torch.testing.assert_close(made, refit(matrix, matrix, keep, square, 20), rtol=1e-4, atol=1e-4)


def error(matrix: Tensor, made: Tensor, square: Tensor) -> float:
    return float(((matrix - made) @ square * (matrix - made)).sum())


@pytest.mark.parametrize("samples", [3, 30, 3000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_refit_is_the_least_squares_solution_of_each_row(samples: int, scale: float) -> None:
    matrix, keep, square = case(samples, scale)
    made = refit(matrix, matrix, keep, square, 500)
    damped = (square / square.diagonal().mean()).double() + DAMPING * torch.eye(24, dtype=torch.float64)
    best = torch.zeros_like(matrix.double())
    for row, stays, solved in zip(matrix.double(), keep, best, strict=True):
        solved[stays] = torch.linalg.solve(damped[stays][:, stays], damped[stays] @ row)
    assert not made[~keep].any()
    assert error(matrix.double(), made.double(), damped) < 1.01 * error(matrix.double(), best, damped)


def test_more_steps_are_never_worse_and_none_is_what_was_there() -> None:
    matrix, keep, square = case(3000)
    damped = square + DAMPING * square.diagonal().mean() * torch.eye(24)
    errors = [error(matrix, refit(matrix, matrix, keep, square, steps), damped) for steps in (0, 1, 2, 4, 8, 50)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(refit(matrix, matrix, keep, square, 0), matrix.where(keep, 0.0))
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_weights_of_any_size_are_refit_alike(size: float) -> None:
    matrix, keep, square = case(300)
    made = refit(matrix, matrix, keep, square, 50)
    torch.testing.assert_close(refit(matrix * size, matrix * size, keep, square, 50) / size, made, rtol=0.02, atol=0.02)


def test_dead_inputs_and_rows_without_weights_stay_as_they_are() -> None:
    matrix, keep, square = case(300)
    keep[0], keep[1] = False, True
    made = refit(matrix, matrix, keep, torch.zeros_like(square), 50)
    assert torch.equal(made, matrix.where(keep, 0.0))
    square[3], square[:, 3] = 0, 0
    made = refit(matrix, matrix, keep, square, 50)
    torch.testing.assert_close(made[:, 3], matrix.where(keep, 0.0)[:, 3])
    assert not made[0].any()
    torch.testing.assert_close(made[1], matrix[1])
