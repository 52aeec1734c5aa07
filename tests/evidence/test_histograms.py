"""Ranges of inputs: counted in one pass, and cut only where the products gain by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto.errors import RangeError
from enxuto.evidence.histograms import BINS, Histogram, clipped_ranges, fitted_ranges
from enxuto.exporters.weights import clipped_inputs
from enxuto.functional.affine import activation_grid
from enxuto.layers.activations import ActivationGrid
from enxuto.steps.quantize import Quantize
from toys import output


def test_a_histogram_grows_and_forgets_nothing():
    seen = Histogram()
    for size in (1e-3, 0.0, 5.0, 0.2, 1e4 - 200):
        seen.add(size * torch.linspace(-1, 1, 100))
    assert float(seen.counts.sum()) == 400
    assert seen.limit >= seen.high == -seen.low == pytest.approx(9800)
    middle = seen.counts[BINS // 2 - 8 : BINS // 2 + 8].sum()
    assert float(middle) >= 300


def test_masks_are_not_counted():
    seen = Histogram()
    seen.add(torch.tensor([-1e9, -1.0, 0.0, 2.0]))
    assert (seen.low, seen.high, float(seen.counts.sum())) == (-1.0, 2.0, 2.0)


@pytest.mark.parametrize("draw", [torch.randn, lambda n: torch.randn(n).relu(), lambda n: torch.randn(n) ** 3])
def test_the_least_squares_range_is_that_of_a_search_by_trying(draw):
    torch.manual_seed(0)
    values = draw(20000)
    seen = Histogram()
    seen.add(values)
    (low, high), zeros = ((fitted_ranges(nn.Sequential(nn.Linear(1, 1)), [values[:, None]], "mse", {"0"}))["0"]), 0.0

    def error(low: float, high: float) -> float:
        return float((ActivationGrid(*activation_grid(low, high))(values) - values).square().mean())

    shares = [share / 20 for share in range(1, 21)]
    tried = [error(a * min(seen.low, zeros), b * seen.high) for a in shares for b in shares]
    assert error(low, high) <= 1.05 * min(tried)


def outlying() -> tuple[nn.Module, torch.Tensor]:
    """A channel that the next layer hardly reads takes most of the range."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(256, 8)
    with torch.no_grad():
        model[0].weight[:, 0] *= 1e-4
    x[:, 0] *= 300
    return model, x


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse", "best"])
def test_every_way_gives_grids_and_the_best_is_never_worse_than_all(ranges):
    model, x = outlying()
    task = ex.Task(model, calibration=[x[:128], x[128:]])
    errors = {}
    for each in ("minmax", ranges):
        small, record = Quantize(8, activations=8, ranges=each)(model, task)
        errors[each] = float((output(small, x) - output(model, x)).norm())
        assert [change.path for change in record.changes if change.what == "input in 8 bits"] == ["0"]
    if ranges == "best":
        assert errors["best"] <= errors["minmax"]


def test_what_the_products_do_not_need_is_cut():
    model, x = outlying()
    x[5, 0] = 2e4
    whole, best = (fitted_ranges(model, [x], ranges, {"0"})["0"] for ranges in ("minmax", "best"))
    assert whole[1] == 2e4
    assert best[1] < 2e3
    ordinary = torch.randn(256, 8)
    assert fitted_ranges(model, [ordinary], "best", {"0"}) == fitted_ranges(model, [ordinary], "minmax", {"0"})
    assert clipped_ranges(model, [x], {"0"}) == {"0": best}
    assert clipped_ranges(model, [ordinary], {"0"}) == {}


def test_a_file_cuts_inputs_but_those_that_have_grids_already():
    model, x = outlying()
    x[5, 0] = 2e4
    assert clipped_inputs(model, [x]).keys() == {"0"}
    assert clipped_inputs(model, [x], known={"0"}) == {}


def test_zeros_alone_have_a_range():
    found = fitted_ranges(nn.Sequential(nn.Linear(2, 2)), [torch.zeros(3, 2)], "best", {"0"})
    assert found == {"0": (0.0, 0.0)}


def test_ranges_nobody_knows_are_refused():
    with pytest.raises(RangeError, match="ranges='widest'"):
        Quantize(8, activations=8, ranges="widest")
