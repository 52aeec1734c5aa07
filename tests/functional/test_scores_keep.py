import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.errors import RangeError, ShapeError
from enxuto.functional.keep import keep_largest, keep_largest_of, keep_pattern, parse_pattern
from enxuto.functional.scores import lamp, magnitude

law = settings(deadline=None, max_examples=60, derandomize=True)
numbers = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40)


@law
@given(numbers, st.floats(0, 1, exclude_max=True))
def test_the_number_that_goes_is_exact_and_none_of_it_beats_what_stays(values, sparsity):
    scores = torch.tensor(values)
    keep = keep_largest(scores, sparsity)
    assert int((~keep).sum()) == round(sparsity * len(values))
    if keep.any() and (~keep).any():
        assert scores[~keep].max() <= scores[keep].min()


def test_ties_go_by_position():
    assert keep_largest(torch.ones(2, 3), 0.5).tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_sparsity_that_makes_no_sense_is_refused(sparsity):
    with pytest.raises(RangeError, match="must be in"):
        keep_largest(torch.ones(4), sparsity)


@law
@given(st.integers(0, 1000), st.sampled_from(["1:2", "2:4", "1:4", "3:8"]))
def test_a_pattern_keeps_the_n_largest_of_every_m(seed, pattern):
    n, m = parse_pattern(pattern)
    scores = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(seed))
    keep = keep_pattern(scores, pattern)
    for row, kept in zip(scores.reshape(-1, m), keep.reshape(-1, m), strict=True):
        assert int(kept.sum()) == n
        assert torch.equal(row[kept].sort().values, row.sort().values[-n:])


def test_a_pattern_of_ties_still_keeps_exactly_n():
    assert keep_pattern(torch.zeros(4, 8), "2:4").sum() == 16


@pytest.mark.parametrize("pattern", ["", "2", "4:2", "4:4", "0:4", "a:b", "2:4:8", "-1:4"])
def test_a_pattern_that_makes_no_sense_is_refused(pattern):
    with pytest.raises(RangeError, match="2:4"):
        keep_pattern(torch.ones(4, 4), pattern)


def test_a_pattern_that_does_not_divide_is_refused():
    with pytest.raises(ShapeError, match="multiple of 4"):
        keep_pattern(torch.ones(4, 6), "2:4")


def slow_lamp(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.flatten().double()
    scores = torch.zeros_like(flat)
    order = sorted(range(flat.numel()), key=lambda i: (float(flat[i] ** 2), i))
    for place, i in enumerate(order):
        scores[i] = flat[i] ** 2 / sum(flat[j] ** 2 for j in order[place:])
    return scores.view_as(weight)


@law
@given(st.lists(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=25))
def test_lamp_equals_the_formula(values):
    weight = torch.tensor(values)
    assert torch.allclose(lamp(weight).double(), slow_lamp(weight), rtol=1e-4)


@pytest.mark.parametrize("size", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_lamp_does_not_depend_on_the_size_of_the_weights(size):
    weight = torch.randn(7, 9)
    assert torch.equal(lamp(weight * size), lamp(weight))


def test_lamp_never_empties_a_layer_and_is_finite_for_zeros():
    assert lamp(torch.randn(50)).max() == 1
    assert torch.equal(lamp(torch.zeros(4)), torch.zeros(4))
    assert lamp(torch.zeros(0)).shape == (0,)


def test_lamp_of_bfloat16_orders_like_lamp_of_float():
    weight = torch.randn(4000).bfloat16()
    assert torch.equal(lamp(weight), lamp(weight.float()))


def test_magnitude_is_the_absolute_value_without_a_graph():
    weight = torch.randn(3, requires_grad=True)
    assert torch.equal(magnitude(weight), weight.abs())
    assert not magnitude(weight).requires_grad


@given(st.integers(0, 10_000), st.floats(0, 0.999))
@law
def test_selecting_over_several_tensors_is_sorting_them_all(seed, sparsity):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(-1, 6, (n, 3), generator=generator).float() for n in (4, 1, 9)]  # many ties
    flat = torch.cat([each.flatten() for each in scores])
    wanted = torch.ones(len(flat), dtype=torch.bool)
    wanted[flat.sort(stable=True).indices[: round(sparsity * len(flat))]] = False
    assert torch.equal(torch.cat([keep.flatten() for keep in keep_largest_of(scores, sparsity)]), wanted)
