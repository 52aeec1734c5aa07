"""Low rank, Tucker-2, CP and Kronecker sums, by weights and by data: what is lost is what is said, and by the data not more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enxuto.functional.cp import lost_by_terms, most_terms, split_cp
from enxuto.functional.kronecker import lost_by_products, most_products, split_kronecker
from enxuto.functional.lowrank import balanced, damped, lost_by_rank, rank_for_energy, split_rank, squares
from enxuto.functional.tucker import lost_by_ranks, split_tucker

law = settings(deadline=None, max_examples=25, derandomize=True)
SCALES = st.sampled_from([1e-6, 1.0, 1e6])


def problem(out: int, inputs: int, seed: int, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """A matrix and damped moments of inputs that hang together, one of them dead."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(samples or 4 * inputs, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    given[:, 0] = 0
    return torch.randn(out, inputs, generator=generator), damped(given.T @ given / len(given))


def lost(matrix: Tensor, made: Tensor, square: Tensor) -> float:
    error = (matrix - made).double()
    return float((error @ square.double() * error).sum())


@law
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), SCALES, SCALES, st.sampled_from([3, None]))
def test_the_outputs_lose_what_is_said_and_never_more_than_by_plain_svd(out, inputs, rank, seed, weights, values, samples):
    rank = min(rank, out, inputs)
    matrix, square = problem(out, inputs, seed, samples)
    matrix, square = matrix * weights, square * values**2
    (down, up), (plain_down, plain_up) = split_rank(matrix, rank, square), split_rank(matrix, rank)
    whole = float(lost_by_rank(matrix, square)[0])
    assert whole == pytest.approx(squares(matrix, square), rel=1e-4)
    assert lost(matrix, up @ down, square) <= lost(matrix, plain_up @ plain_down, square) + 1e-5 * whole
    assert lost(matrix, up @ down, square) == pytest.approx(float(lost_by_rank(matrix, square)[rank]), abs=1e-5 * whole)


def test_the_least_error_is_that_of_svd_llm():
    matrix, square = problem(9, 7, seed=1)
    root = np.linalg.cholesky(square.double().numpy())
    values = np.linalg.svd(matrix.double().numpy() @ root, compute_uv=False)
    expected = [float(np.square(values[rank:]).sum()) for rank in range(8)]
    assert lost_by_rank(matrix, square).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_moments_without_full_rank_lose_nothing_that_they_show():
    matrix, generator = torch.randn(8, 20), torch.Generator().manual_seed(0)
    three = torch.randn(3, 20, generator=generator)
    square = damped(three.T @ three / 3)
    down, up = split_rank(matrix, 3, square)
    assert float((three @ (up @ down - matrix).T).norm()) < 0.05 * float((three @ matrix.T).norm())


def test_the_rank_for_an_energy_goes_by_the_data_if_there_are_any():
    matrix, square = problem(10, 10, seed=3)
    for energy in (0.5, 0.9, 1.0):
        rank = rank_for_energy(matrix, energy, square)
        left = lost_by_rank(matrix, square) / lost_by_rank(matrix, square)[0]
        assert float(left[rank]) <= 1 - energy + 1e-9
        assert rank == 1 or float(left[rank - 1]) > 1 - energy


def test_factors_get_equal_norms_and_zeros_stay():
    left, right = torch.randn(5, 3), torch.randn(3, 2, 4) * 100
    left[:, 0], right[1] = 0, 0
    one, other = balanced(left, right)
    torch.testing.assert_close(torch.einsum("or,rij->oij", one, other), torch.einsum("or,rij->oij", left, right))
    assert float(one[:, 2].norm()) == pytest.approx(float(other[2].norm()), rel=1e-5)


def whole(parts) -> Tensor:
    return torch.einsum("or,rsk,si->oik", parts.up, parts.core, parts.down)


@law
@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 4), st.integers(0, 99), SCALES, st.booleans(), st.data())
def test_tucker_loses_what_is_said_or_less_and_less_by_the_data(out, inputs, places, seed, scale, seen, data):
    matrix, square = problem(out, inputs * places, seed)
    weight = matrix.view(out, inputs, places) * scale
    ranks = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, out))
    parts = split_tucker(weight, ranks, square if seen else None)
    assert (parts.down.shape, parts.core.shape[:2], parts.up.shape) == ((ranks[0], inputs), ranks[::-1], (out, ranks[1]))
    error = (weight - whole(parts)).flatten(1)
    [said] = lost_by_ranks(weight, [ranks[0]], square if seen else None)[:, ranks[1]].tolist()
    total = squares(weight.flatten(1), square if seen else None)
    assert squares(error, square if seen else None) <= max(1.1 * said, said + 1e-4 * total)


def test_tucker_of_full_ranks_is_the_kernel_itself_and_of_a_kernel_of_low_ranks_too():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 9, generator=generator)
    torch.testing.assert_close(whole(split_tucker(weight, (5, 6))), weight, atol=1e-5, rtol=0)
    _, square = problem(1, 45, seed=2)
    low = torch.einsum("or,rsk,si->oik", *(torch.randn(*shape, generator=generator) for shape in ((6, 3), (3, 2, 9), (2, 5))))
    for moments in (None, square):
        torch.testing.assert_close(whole(split_tucker(low, (2, 3), moments)), low, atol=1e-4, rtol=1e-4)


def test_rounds_of_tucker_come_near_what_search_finds():
    """Against gradient descent on the same factors, from several starts: HOOI is within a hundredth."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(6, 6, 4, generator=generator)
    _, square = problem(1, 24, seed=6)
    ours = squares((weight - whole(split_tucker(weight, (3, 3), square))).flatten(1), square)
    found = []
    for _ in range(4):
        parts = [torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((6, 3), (3, 3, 4), (3, 6))]
        search = torch.optim.LBFGS(parts, max_iter=400, line_search_fn="strong_wolfe")

        def closure(parts=parts, search=search):
            search.zero_grad()
            error = (weight - torch.einsum("or,rsk,si->oik", *parts)).flatten(1)
            loss = (error @ square * error).sum()
            loss.backward()
            return loss

        search.step(closure)
        found.append(float(closure().detach()))
    plain = squares((weight - whole(split_tucker(weight, (3, 3)))).flatten(1), square)
    assert min(found) <= ours + 1e-3
    assert ours < 1.15 * min(found) < plain


def terms(down, core, up) -> Tensor:
    return torch.einsum("or,rk,ri->oik", up, core, down)


@law
@given(st.integers(2, 8), st.integers(2, 8), st.integers(2, 4), st.integers(0, 99), SCALES, st.booleans(), st.data())
def test_cp_loses_what_is_said_and_its_terms_do_not_grow_to_cancel(out, inputs, places, seed, scale, seen, data):
    matrix, square = problem(out, inputs * places, seed)
    weight = matrix.view(out, inputs, places) * scale
    rank, moments = data.draw(st.integers(1, most_terms(out, inputs, places))), square if seen else None
    down, core, up = split_cp(weight, rank, moments)
    assert (down.shape, core.shape, up.shape) == ((rank, inputs), (rank, places), (out, rank))
    [said], total = lost_by_terms(weight, [rank], moments)
    assert squares((weight - terms(down, core, up)).flatten(1), moments) == pytest.approx(said, abs=1e-3 * total)
    if not seen:
        sizes = down.norm(dim=1) * core.norm(dim=1) * up.norm(dim=0)
        assert float(sizes.norm()) < 20 * float(weight.norm())


def test_all_terms_of_cp_are_the_kernel_and_few_of_a_kernel_of_few():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 4, generator=generator)
    _, square = problem(1, 20, seed=2)
    low = terms(*(torch.rand(*shape, generator=generator) for shape in ((3, 5), (3, 4), (6, 3))))
    for moments in (None, square):
        torch.testing.assert_close(terms(*split_cp(weight, most_terms(6, 5, 4), moments)), weight, atol=1e-3, rtol=0)
        assert lost_by_terms(low, [3], moments)[0][0] < 1e-3 * lost_by_terms(low, [3], moments)[1]


@pytest.mark.parametrize("seed", range(3))
def test_terms_that_would_grow_without_end_are_kept_small(seed):
    """The sum of three terms to which no two are nearest: as two come nearer, they grow and cancel each other."""
    one, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
    vectors = ([other[axis] if axis == turned else one[axis] for axis in range(3)] for turned in range(3))
    weight = sum(torch.einsum("o,i,k->oik", *each) for each in vectors)
    down, core, up = split_cp(weight, 2)
    assert float((weight - terms(down, core, up)).norm()) < 0.03 * float(weight.norm())
    assert float((down.norm(dim=1) * core.norm(dim=1) * up.norm(dim=0)).max()) < 1.5 * float(weight.norm())


def test_a_kernel_of_zeros_has_terms_of_zeros():
    factors = split_cp(torch.zeros(3, 4, 5), 2)
    assert all(torch.isfinite(factor).all() for factor in factors)
    assert not terms(*factors).any()


@law
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99), st.booleans(), st.data())
def test_kronecker_sums_lose_what_is_said_and_nothing_with_all_products(rows, columns, high, wide, seed, seen, data):
    out, inputs = rows * high, columns * wide
    matrix, square = problem(out, inputs, seed)
    moments, most = square if seen else None, most_products(out, inputs, (rows, columns))
    count = data.draw(st.integers(1, most))
    inner, outer = split_kronecker(matrix, count, (rows, columns), moments)
    made = sum(torch.kron(*pair) for pair in zip(outer, inner, strict=True))
    [said, nothing], total = lost_by_products(matrix, [count, most], (rows, columns), moments)
    assert squares(matrix - made, moments) == pytest.approx(said, abs=1e-4 * total)
    assert nothing < 1e-4 * total


def test_the_nearest_kronecker_sum_is_an_svd_of_the_blocks():
    matrix, _ = problem(6, 8, seed=4)
    laid = torch.stack([block.flatten() for row in matrix.split(3) for block in row.split(4, dim=1)])
    values = torch.linalg.svdvals(laid.double())
    lost, _ = lost_by_products(matrix, [1, 2, 3], (3, 4))
    assert lost == pytest.approx([float(values[count:].square().sum()) for count in (1, 2, 3)], rel=1e-4)
