import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.functional.affine import (
    absmax_scale,
    activation_grid,
    fit_scale,
    largest_code,
    learned_rounding,
    learned_steps,
    short,
    to_codes,
)

law = settings(deadline=None, max_examples=40, derandomize=True)
seeds, widths = st.integers(0, 10_000), st.integers(1, 8)


def rows(seed: int, scale: float = 1.0, shape: tuple[int, int] = (5, 33)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@law
@given(seeds, st.integers(2, 8), st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]))
def test_rounding_errs_by_at_most_half_a_step_inside_the_range(seed, bits, size):
    x = rows(seed, size)
    scale = absmax_scale(x, bits)
    error = (to_codes(x, scale, bits) * scale[:, None] - x).abs()
    assert bool((error <= scale[:, None] * (0.5 + 1e-5)).all())


@law
@given(seeds, widths)
def test_a_fitted_scale_never_loses_to_the_largest_magnitude(seed, bits):
    x = rows(seed) ** 3  # heavy tails, where clipping pays

    def error(scale):
        return (to_codes(x, scale, bits) * scale[:, None] - x).square().sum(dim=1)

    assert bool((error(fit_scale(x, bits)) <= error(absmax_scale(x, bits)) * (1 + 1e-5)).all())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("power", [-100, -40, -20, 20, 40, 100])
def test_fitting_follows_the_scale_of_the_weights_exactly(bits, power):
    x = rows(3)
    assert torch.equal(fit_scale(x * 2.0**power, bits), fit_scale(x, bits) * 2.0**power)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("size", [1e-35, 1e-6, 3e38])
def test_extreme_and_constant_rows_keep_finite_positive_scales(bits, size):
    x = torch.cat([rows(0).clamp(-1, 1) * size, torch.full((1, 33), size), torch.zeros(1, 33)])
    scale = fit_scale(x, bits)
    assert bool((torch.isfinite(scale) & (scale > 0)).all())
    assert bool(torch.isfinite(to_codes(x, scale, bits)).all())
    assert bool((to_codes(x, scale, bits)[5] == largest_code(bits)).all())


def test_one_bit_takes_the_mean_magnitude_also_of_very_large_rows():
    x = torch.full((1, 10_000), 3e38)
    x[0, ::2] *= -1
    assert fit_scale(x, 1).item() == pytest.approx(3e38, rel=1e-6)


@law
@given(st.floats(2.0**-110, 2.0**110, width=32), st.integers(-127, 127))
def test_a_short_scale_times_a_code_is_exact_and_so_comes_back(scale, code):
    s = short(torch.tensor([scale]))
    assert s.item() == pytest.approx(scale, rel=2**-15)
    product = s * code
    assert product.double().item() == s.double().item() * code
    assert code == 0 or torch.equal(product / code, s)
    assert torch.equal(short(s), s)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_rounding_gives_the_grid_and_gradients_to_both(bits):
    x, scale = rows(1).requires_grad_(), absmax_scale(rows(1), bits).mul(0.7).requires_grad_()
    y = learned_rounding(x, scale, bits)
    assert torch.allclose(y, to_codes(x, scale, bits) * scale[:, None])
    y.sum().backward()
    inside = (x / scale[:, None]).abs() <= largest_code(bits)
    assert torch.equal(x.grad != 0, inside)
    assert bool((scale.grad != 0).all())


def test_learned_steps_have_the_gradients_of_a_clamped_quotient():
    rows = torch.tensor([[0.2, -1.5, 9.0], [0.0, 3.0, -0.5]], requires_grad=True)
    scale = torch.tensor([0.5, 2.0], requires_grad=True)
    worth = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    plain, learned = (rows / scale[:, None]).clamp(-7, 7), learned_steps(rows, scale, 4)
    assert torch.equal(plain, learned)
    for one, other in zip(*(torch.autograd.grad((it * worth).sum(), (rows, scale)) for it in (plain, learned)), strict=True):
        torch.testing.assert_close(one, other)


def test_learned_rounding_of_one_bit_moves_the_scale_by_the_signs():
    x, scale = rows(2).requires_grad_(), torch.ones(5, requires_grad=True)
    learned_rounding(x, scale, 1).sum().backward()
    assert torch.equal(scale.grad, torch.where(x < 0, -1.0, 1.0).sum(dim=1).detach())
    assert torch.equal(x.grad, torch.ones_like(x))


@law
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_an_activation_grid_covers_the_range_and_says_zero_exactly(a, b):
    low, high = min(a, b), max(a, b)
    scale, zero_point = activation_grid(low, high)
    assert scale > 0
    assert 0 <= zero_point <= 255
    assert (0 - zero_point) * scale <= min(low, 0) + scale
    assert (255 - zero_point) * scale >= max(high, 0) - scale
