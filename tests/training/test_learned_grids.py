"""Training on grids: every width and every sharing of scales trains, and ships to the bit what the last forward pass saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.errors import Error
from enxuto.functional.affine import learned_inputs
from enxuto.layers.activations import ActivationGrid, LearningGrid
from enxuto.sites import sites
from toys import Block, Mlp, ResidualCnn, inputs, output, seeded

WIDTHS = [(bits, per) for bits in range(1, 9) for per in ("tensor", "channel", "group", "network")]


def trained(kind: type[nn.Module], steps: list[Any], *, batches: int = 4, rate: float = 1e-2) -> nn.Module:
    x, y = inputs(kind), torch.arange(len(inputs(kind))) % 5
    model = ex.prepare(ex.Task(seeded(kind), calibration=[x]), steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(batches):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(1)[:, :5], y).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("bits", "per"), WIDTHS)
def test_every_width_trains_and_ships_what_was_seen(bits: int, per: Any) -> None:
    more = {"group": 4} if per == "group" else {}
    model = trained(Mlp, [ex.Quantize(bits, per=per, activations=8, **more)])
    for weight in sites(model):
        leaf = weight.tensor
        assert leaf.change.abs().max() > 0  # type: ignore[union-attr]
        assert leaf.leaf.grad.count_nonzero() > 0  # type: ignore[union-attr]
    shipped = ex.convert(model)
    x = inputs(Mlp)
    assert torch.equal(output(shipped, x), output(model, x))
    for weight, seen in zip(sites(shipped), sites(model), strict=True):
        assert torch.equal(weight.read(), seen.tensor().detach())  # type: ignore[operator]
        assert len(weight.tensor.integers().unique()) <= 2**bits  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize("steps", [[ex.Prune(0.7), ex.Share(3)], [ex.Prune(0.7), ex.Quantize(3, activations=8)]], ids=str)
def test_zeros_stay_zero_on_grids_that_learn(kind: type[nn.Module], steps: list[Any], tmp_path: Any) -> None:
    model = trained(kind, steps)
    shipped, x = ex.convert(model), inputs(kind)
    assert torch.equal(output(shipped, x), output(model, x))
    for weight, seen in zip(sites(shipped), sites(model), strict=True):
        assert not weight.read()[~seen.tensor.keep].any()  # type: ignore[union-attr]
    ex.save(shipped, tmp_path / "a.nxt", original=seeded(kind))
    assert torch.equal(output(ex.load(tmp_path / "a.nxt", into=seeded(kind, seed=1)), x), output(shipped, x))


def test_the_scales_of_inputs_learn_and_go_on_learning_after_a_file() -> None:
    step = ex.Quantize(8, activations=8)
    before = ex.prepare(ex.Task(seeded(Mlp), calibration=[inputs(Mlp)]), [step])
    model = trained(Mlp, [step])
    grids = [(m, n) for m, n in zip(before.modules(), model.modules(), strict=True) if isinstance(m, LearningGrid)]
    assert len(grids) == 3
    assert all(not torch.equal(one.scale(), two.scale()) for one, two in grids)
    shipped = ex.convert(model)
    found = [module for module in shipped.modules() if isinstance(module, (ActivationGrid, LearningGrid))]
    assert all(torch.equal(now.scale, grid.scale()) for now, (_, grid) in zip(found, grids, strict=True))
    again = ex.prepare(ex.Task(shipped, calibration=[inputs(Mlp)]))
    assert torch.equal(output(again.eval(), inputs(Mlp)), output(shipped, inputs(Mlp)))
    assert sum(isinstance(module, LearningGrid) for module in again.modules()) == 3


def test_the_gradient_of_an_input_scale_is_the_one_of_the_paper() -> None:
    """By automatic differentiation of equation 1 with rounding straight through; then times the factor of section 2.2."""
    x = torch.linspace(-3, 5, 60).view(4, 15).requires_grad_()
    scale, zero = torch.tensor([0.017], requires_grad=True), torch.tensor([100], dtype=torch.int32)
    weights = torch.randn(4, 15, generator=torch.Generator().manual_seed(0))
    (learned_inputs(x, scale, zero) * weights).sum().backward()
    given, told = x.grad.clone(), scale.grad.clone()  # type: ignore[union-attr]
    x.grad = scale.grad = None
    steps = x / scale
    steps = (steps + (steps.round() - steps).detach()).clamp(-100, 155)
    (steps * scale * weights).sum().backward()
    assert torch.allclose(given, x.grad)  # type: ignore[arg-type]
    assert torch.allclose(told, scale.grad / (255 * 15) ** 0.5, rtol=1e-4)  # type: ignore[operator]


def test_a_range_that_is_far_too_wide_comes_nearer_to_its_inputs() -> None:
    torch.manual_seed(0)
    grid = LearningGrid(ActivationGrid(1.0, 128))
    optimizer = torch.optim.Adam(grid.parameters(), lr=0.05)
    for _ in range(150):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        F.mse_loss(grid(x), x).backward()
        optimizer.step()
    assert 4 / 255 < float(grid.scale().detach()) < 0.2


def test_what_is_frozen_does_not_learn_its_inputs_either() -> None:
    net = seeded(Mlp)
    net.fc1.requires_grad_(False)
    model = ex.prepare(ex.Task(net, calibration=[inputs(Mlp)]), [ex.Quantize(8, activations=8)])
    assert [m.growth.requires_grad for m in model.modules() if isinstance(m, LearningGrid)] == [False, True, True]


def test_widths_that_no_grid_has_are_refused() -> None:
    for bits in (0, 9, 2.5):
        with pytest.raises(Error, match=r"bits=.*outside 1\.\.8"):
            ex.Quantize(bits)  # type: ignore[arg-type]
