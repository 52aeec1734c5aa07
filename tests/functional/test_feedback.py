"""Rounding with feedback, against ten slow lines of its paper."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enxuto.functional import feedback
from enxuto.functional.feedback import DAMPING, Feedback

law = settings(deadline=None, max_examples=30, derandomize=True)


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A matrix and moments of inputs that hang together."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs / len(inputs)


def round_with_feedback(matrix: Tensor, square: Tensor, *grid: object, **more: object) -> Tensor:
    made = matrix.clone()
    Feedback.of(square.clone()).round_(made, *grid, **more)
    return made


def error(made: Tensor, matrix: Tensor, square: Tensor) -> float:
    lost = (matrix - made).double()
    return float((lost @ square.double() * lost).sum())


def by_the_paper(matrix: Tensor, square: Tensor, scale: float, largest: int) -> Tensor:
    """GPTQ's algorithm 1 column by column, with the inverse."""
    order = square.diagonal().argsort(descending=True, stable=True)
    damped = square[order][:, order].double() + DAMPING * square.diagonal().double().mean() * torch.eye(len(square))
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    values, made = matrix[:, order].double(), torch.empty_like(matrix)
    for column in range(len(square)):
        rounded = (values[:, column] / scale).round().clamp(-largest, largest) * scale
        made[:, order[column]] = rounded.float()
        lost = (values[:, column] - rounded) / inverse[column, column]
        values[:, column:] -= lost[:, None] * inverse[column, column:]
    return made


@law
@given(st.integers(1, 5), st.integers(1, 150), st.integers(0, 99))
def test_it_is_what_the_paper_says(rows: int, columns: int, seed: int) -> None:
    matrix, square = problem(rows, columns, seed)
    scale = torch.tensor(0.5).expand_as(matrix)
    with patch.object(feedback, "SWEEPS", 0):  # without the descent that comes after
        made = round_with_feedback(matrix, square, scale, 3)
    slow = by_the_paper(matrix, square, 0.5, 3)
    assert (made != slow).float().mean() <= 0.02, "a value on the edge may fall either way"
    assert error(made, matrix, square) == pytest.approx(error(slow, matrix, square), rel=0.05)


@law
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
def test_after_it_no_value_alone_can_move_for_the_better(rows: int, columns: int, seed: int) -> None:
    matrix, square = problem(rows, columns, seed)
    damped = square + DAMPING * square.diagonal().mean() * torch.eye(columns)
    scale = torch.tensor(0.5).expand_as(matrix)
    with patch.object(feedback, "SWEEPS", 100):
        made = round_with_feedback(matrix, square, scale, 3)
    with patch.object(feedback, "SWEEPS", 0):
        before = round_with_feedback(matrix, square, scale, 3)
    least = error(made, matrix, damped)
    assert least <= error(before, matrix, damped) * (1 + 1e-5)
    for column in range(columns):
        for step in (-0.5, 0.5):
            moved = made.clone()
            moved[:, column] = (moved[:, column] + step).clamp(-1.5, 1.5)
            assert error(moved, matrix, damped) >= least * (1 - 1e-4)


@law
@given(st.integers(2, 100), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]), st.sampled_from([1e-6, 1.0, 1e6]))
def test_it_loses_less_than_rounding_to_nearest_at_any_scale(columns: int, seed: int, weights: float, inputs: float) -> None:
    matrix, square = problem(40, columns, seed)
    matrix, square, scale = matrix * weights, square * inputs**2, 0.7 * weights
    nearest = (matrix / scale).round().clamp(-3, 3) * scale
    made = round_with_feedback(matrix, square, torch.tensor(scale).expand_as(matrix), 3)
    assert error(made, matrix, square) <= error(nearest, matrix, square)
    steps = made.double() / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-5, rtol=0)
    assert steps.abs().max() <= 3 + 1e-5


def test_moments_without_full_rank_and_inputs_that_are_always_zero_are_no_obstacle() -> None:
    matrix, _ = problem(6, 20, 0)
    for square in (torch.zeros(20, 20), torch.ones(20, 20), torch.diag((torch.arange(20) < 3).float())):
        made = round_with_feedback(matrix, square, torch.tensor(0.5).expand_as(matrix), 7)
        assert torch.isfinite(made).all()
        assert error(made, matrix, square) <= error((matrix / 0.5).round() * 0.5, matrix, square) + 1e-9


def test_entries_signs_and_zeros() -> None:
    matrix, square = problem(30, 16, 3)
    entries = torch.tensor([-1.5, -0.2, 0.0, 0.6, 2.0])
    one = torch.tensor(1.0).expand_as(matrix)
    made = round_with_feedback(matrix, square, one, 1, entries)
    assert torch.isin(made, entries).all()
    nearest = entries[(matrix[..., None] - entries).abs().argmin(-1)]
    assert error(made, matrix, square) < error(nearest, matrix, square)
    signs = round_with_feedback(matrix, square, one, 0, zero=False)
    assert torch.equal(signs.abs(), one)
    assert error(signs, matrix, square) < error(torch.where(matrix < 0, -1.0, 1.0), matrix, square)
    sparse = torch.where(matrix.abs() > 0.5, matrix, 0.0)
    assert (round_with_feedback(sparse, square, one / 4, 7)[sparse == 0] == 0).all()


def test_scales_may_differ_by_column() -> None:
    matrix, square = problem(5, 12, 1)
    scale = torch.rand(5, 3).repeat_interleave(4, dim=1) + 0.1
    made = round_with_feedback(matrix, square, scale, 3)
    torch.testing.assert_close(made / scale, (made / scale).round())
