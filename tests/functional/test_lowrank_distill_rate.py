import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.functional.distill import same_values, soft_labels
from enxuto.functional.likeness import Spread, distance, largest
from enxuto.functional.lowrank import rank_for_energy, split_rank
from enxuto.functional.rate import prices

law = settings(deadline=None, max_examples=30, derandomize=True)


@law
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_factors_are_as_good_as_numpy_says_they_can_be(out, inputs, rank, size):
    rank = min(rank, out, inputs)
    matrix = torch.randn(out, inputs, generator=torch.Generator().manual_seed(out * 10 + inputs)) * size
    down, up = split_rank(matrix, rank)
    assert (down.shape, up.shape) == ((rank, inputs), (out, rank))
    least = np.sqrt(np.square(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[rank:]).sum())
    assert float((up.double() @ down.double() - matrix.double()).norm()) <= least + 1e-5 * float(matrix.norm())


@law
@given(st.integers(2, 8), st.floats(0.01, 1))
def test_the_rank_is_the_least_that_holds_the_energy(n, energy):
    matrix = torch.randn(n, n + 1, generator=torch.Generator().manual_seed(n))
    rank = rank_for_energy(matrix, energy)
    squares = np.square(np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    assert squares[:rank].sum() / squares.sum() >= energy - 1e-9
    assert rank == 1 or squares[: rank - 1].sum() / squares.sum() < energy


def test_a_matrix_of_zeros_has_rank_one_and_full_energy_keeps_all():
    assert rank_for_energy(torch.zeros(3, 4), 0.9) == 1
    assert rank_for_energy(torch.randn(3, 4), 1.0) == 3
    down, up = split_rank(torch.zeros(3, 4), 1)
    assert torch.equal(up @ down, torch.zeros(3, 4))


def test_the_bits_of_codes_are_those_of_zeros_magnitudes_and_signs():
    """Where every row and column has as many, places cost the entropy of zero or not, and what is there that of its magnitude."""
    codes = torch.zeros(60, 60)
    for shift, magnitude in ((0, 1), (1, 1), (2, 2)):
        codes[torch.arange(60), (torch.arange(60) + shift) % 60] = magnitude
    here = 3 / 60
    places = -(here * math.log2(here) + (1 - here) * math.log2(1 - here))
    signed = 1 - (2 * math.log2(2 / 3) + math.log2(1 / 3)) / 3
    assert prices(codes, 7).total == pytest.approx(3600 * (places + here * signed), rel=0.03)


def test_a_code_is_dear_where_its_row_and_its_column_are_empty():
    codes = torch.zeros(20, 20)
    codes[:4, :4] = 1
    found = prices(codes, 3)
    assert float(found.first[0, 0]) < float(found.first[0, 10]) < float(found.first[10, 10])
    assert float(found.further[0]) > 0, "a two is rare here"
    assert float(found.further[2]) == 0, "nothing is above the largest"
    slopes = found.slopes(torch.tensor([[0.2, 0.9, 3.4]]).expand(20, 3)[:, [0, 1, 2] * 6 + [0, 1]])
    assert torch.equal(slopes[:, 0], found.first[:, 0])
    assert torch.equal(slopes[:, 1], found.further[:1].expand(20))
    assert not slopes[:, 2].any()


def test_a_vector_costs_the_entropy_of_its_codes():
    """A line of its own for each place would foresee what is there, for nothing."""
    for codes in (torch.tensor([[1.0] * 10 + [0.0] * 90]), torch.tensor([[1.0] * 10 + [0.0] * 90]).T):
        found = prices(codes, 1)
        assert found.total == pytest.approx(-10 * math.log2(0.1) - 90 * math.log2(0.9) + 10, rel=0.03)
        torch.testing.assert_close(found.first, found.first[:1, :1].expand_as(codes))


@pytest.mark.parametrize("apart", [False, True])
def test_the_pull_is_what_autograd_finds(apart):
    generator = torch.Generator().manual_seed(0)
    found = prices(torch.randint(0, 3, (6, 8), generator=generator).float(), 7)
    steps = (2 * torch.randn(6, 8, generator=generator)).requires_grad_()
    seen = (2 * torch.randn(6, 8, generator=generator)) if apart else steps.detach()
    plain = torch.dot(found.slopes(seen.abs()).flatten(), steps.abs().flatten())
    (wanted,) = torch.autograd.grad(3 * plain, steps)
    bits = found.pull(steps, seen)
    torch.testing.assert_close(bits, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * bits, steps)[0], wanted)


def test_codes_that_are_zero_throughout_have_prices_too():
    found = prices(torch.zeros(3, 4), 7)
    assert 0 < found.total < 12
    assert bool(torch.isfinite(found.first).all())
    assert bool((found.first > 0).all())


def test_the_distance_to_oneself_is_zero_and_to_others_is_not():
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    assert float(soft_labels(a, a, 4.0)) == pytest.approx(0, abs=1e-6)
    assert float(soft_labels(a, b, 4.0)) > 0.1
    assert float(same_values(a, a, Spread.of([a]))) == 0
    small, large = (float(same_values(b * size, a * size, Spread.of([a * size]))) for size in (1e-6, 1.0))
    assert small == pytest.approx(large, rel=1e-3)


@pytest.mark.parametrize("by", [1e-7, 1e-5])
def test_differences_of_rounding_teach_nothing(by):
    teacher = torch.randn(6, 5)
    student = (teacher * (1 + by)).requires_grad_()
    for loss in (soft_labels(student, teacher, 4.0), same_values(student, teacher, Spread.of([teacher]))):
        (gradient,) = torch.autograd.grad(loss, student)
        assert not gradient.any()


def test_soft_labels_equal_hintons_formula():
    a, b, t = torch.randn(6, 5), torch.randn(6, 5), 3.0
    p, q = (b / t).softmax(1), (a / t).softmax(1)
    assert float(soft_labels(a, b, t)) == pytest.approx(float((p * (p / q).log()).sum(1).mean() * t * t), rel=1e-4)


def test_infinities_say_nothing_of_the_other_values():
    mask, nan = float("-inf"), float("nan")
    expected = torch.tensor([3.0, mask, nan])
    assert largest(expected) == 3
    assert largest(torch.tensor([])) == largest(torch.tensor([mask])) == 0
    assert distance(torch.tensor([3.3, mask, nan]), expected) == pytest.approx(0.1)
    for other in ([3.0, -mask, nan], [3.0, 1.0, nan], [3.0, mask, 1.0], [mask, mask, nan], [nan, mask, nan], [3.0, mask]):
        assert distance(torch.tensor(other), expected) == float("inf")
    assert distance(torch.zeros(2), torch.zeros(2)) == 0
    assert distance(torch.full((2,), 1e-6), torch.zeros(2)) > 1e20
