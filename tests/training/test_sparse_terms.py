"""Terms that make weights zero or small: gates and thresholds that learn, lengths of groups, scales of batch norms."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.errors import LayerError, RangeError, RecipeError
from enxuto.functional.gates import hard_concrete, open_chances, soft_threshold
from enxuto.functional.norms import group_norms
from enxuto.layers.gates import Concrete, Gate, LearnedThreshold
from enxuto.layers.rehearsal import Rehearsal
from enxuto.recipe import from_yaml, to_yaml
from enxuto.sites import sites
from enxuto.training.rehearsals import settle_
from toys import ResidualCnn, inputs, output, seeded

GATES = [ex.terms.L0, ex.terms.SoftThreshold]


@functools.cache
def batches() -> list[tuple[Tensor, Tensor]]:
    """Labels that hang on the first four of twelve inputs alone."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(1600, 12, generator=chance)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] + x[:, 3] > 0).long()
    return list(zip(x.split(32), y.split(32), strict=True))


class Small(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 40), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


def task() -> ex.Task:
    return ex.Task(seeded(Small), calibration=[batches()[0][0]], train=batches(), loss=F.cross_entropy)


def trained(*terms: Any, **more: Any) -> tuple[nn.Module, ex.Record]:
    options = {"epochs": 6, "learning_rate": 1e-2, "teacher": 0.0} | more
    return ex.Recover(terms=terms, **options)(task().model, task())  # type: ignore[arg-type]


def right(model: nn.Module) -> float:
    x, y = (torch.cat(each) for each in zip(*batches(), strict=True))
    return float((output(model, x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("kind", GATES)
def test_gates_close_as_many_weights_as_were_asked_for_and_ship_exact_zeros(kind: Any, tmp_path: Path) -> None:
    small, record = trained(kind(0.7))
    total = sum(weight.read().numel() for weight in sites(small))
    zeros = sum(int((weight.read() == 0).sum()) for weight in sites(small))
    assert record.figures["sparsity"] == pytest.approx(zeros / total)
    assert 0.65 < zeros / total < 0.75
    assert not record.skipped
    assert right(small) > 0.7
    assert not any(isinstance(module, (Gate, Rehearsal)) for module in small.modules())
    assert not any(torch.signbit(weight.read()[weight.read() == 0]).any() for weight in sites(small))
    ex.save(small, tmp_path / "a.nxt", original=task().model)
    x = batches()[0][0]
    assert torch.equal(output(ex.load(tmp_path / "a.nxt", into=Small()), x), output(small, x))
    again, _ = trained(kind(0.7))
    assert all(torch.equal(a.read(), b.read()) for a, b in zip(sites(small), sites(again), strict=True))


@pytest.mark.parametrize("kind", GATES)
def test_grids_come_on_top_and_zeros_that_came_stay(kind: Any) -> None:
    pruned, _ = ex.run(task(), [ex.Prune(0.3)])
    step = ex.Recover(epochs=2, learning_rate=1e-2, during=[ex.Share(3)], terms=[kind(0.6, layers="fc1")])
    small, record = step(pruned, task())
    for before, after in zip(sites(pruned), sites(small), strict=True):
        assert not after.read()[before.read() == 0].any()
        assert len(after.read().unique()) <= 8
    assert record.figures["sparsity"] > 0.3


@pytest.mark.parametrize("gate", [Concrete, LearnedThreshold])
def test_what_evaluation_sees_is_what_ships(gate: Any) -> None:
    model = ex.prepare(task())
    for weight in sites(model):
        leaf = weight.rehearsal_()
        leaf.gate = gate(leaf.leaf)
        leaf.gate.moved.data.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
    x = batches()[0][0]
    assert torch.equal(output(model.eval(), x), output(settle_(model), x))


def test_gates_follow_the_equations() -> None:
    chance = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    for odds in (-2.0, 0.0, 1.5):
        drawn = hard_concrete(torch.full_like(chance, odds), chance)
        assert float((drawn > 0).float().mean()) == pytest.approx(float(open_chances(torch.tensor(odds))), abs=0.01)
    weight = torch.tensor([0.5, -0.2, 0.1], requires_grad=True)
    threshold = torch.tensor(0.15, requires_grad=True)
    soft_threshold(weight, threshold).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.0, 0.0]
    assert threshold.grad is not None
    assert float(threshold.grad) == 0.0, "one is smaller by it, the other larger"


def test_a_group_lasso_makes_inputs_small_that_say_nothing() -> None:
    plain, _ = trained()
    small, _ = trained(ex.terms.GroupLasso(1e-3, by="columns", layers="fc1"))

    def useless(model: nn.Module) -> float:
        lengths = group_norms(next(iter(sites(model))).read(), rows=False)
        return float(lengths[4:].sum() / lengths.sum())

    assert useless(small) < 0.5 * useless(plain)
    assert right(small) > 0.9
    rows, _ = trained(ex.terms.GroupLasso(3e-3))
    lengths = [float(group_norms(next(iter(sites(model))).read(), rows=True).sum()) for model in (rows, plain)]
    assert lengths[0] < 0.8 * lengths[1]


def test_slimming_makes_scales_small_and_says_where_there_are_none() -> None:
    x = inputs(ResidualCnn)
    given = ex.Task(seeded(ResidualCnn), calibration=[x], train=[(x, torch.arange(4) % 5)] * 20, loss=F.cross_entropy)

    def scales(*terms: Any) -> float:
        small, _ = ex.Recover(learning_rate=1e-2, terms=terms)(given.model, given)
        return sum(float(m.weight.abs().sum().detach()) for m in small.modules() if isinstance(m, nn.BatchNorm2d))

    assert scales(ex.terms.Slimming(1.0)) < 0.9 * scales()
    with pytest.raises(LayerError, match=r"no batch norm with scales matches layers='\*'.*use GroupLasso"):
        trained(ex.terms.Slimming())


@pytest.mark.parametrize(
    ("terms", "error", "words"),
    [
        (lambda: ex.terms.L0(1.0), RangeError, r"sparsity=1\.0 is the fraction of zeros"),
        (lambda: ex.terms.SoftThreshold(-1), RangeError, r"sparsity=-1 is the fraction of zeros"),
        (lambda: ex.terms.GroupLasso(0), RangeError, r"weight=0 of GroupLasso is no number above 0"),
        (lambda: ex.terms.GroupLasso(by="cells"), RangeError, r"by='cells' is not known; use 'rows'"),  # type: ignore[arg-type]
        (lambda: ex.terms.Slimming(-1), RangeError, r"weight=-1 of Slimming is no number above 0"),
        (lambda: trained(ex.terms.L0(), ex.terms.SoftThreshold()), RecipeError, r"two terms close the weights.*; leave one out"),
        (lambda: trained(ex.terms.L0(layers="fc9")), LayerError, r"fc9"),
        (
            lambda: ex.run(task(), [ex.Quantize(8, per="tensor"), ex.Recover(terms=[ex.terms.L0()], rate=1e-6)]),
            RecipeError,
            r"rate prices the codes of weights that L0 or SoftThreshold close as if they were open; leave one of them out",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(terms: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        terms()


def test_a_sparsity_that_is_missed_is_told() -> None:
    _, record = trained(ex.terms.L0(0.9), epochs=0.1)
    assert [change.what for change in record.skipped] == ["missed"]
    assert "of the weights are left in place of 10.00%" in record.skipped[0].why


def test_they_survive_a_recipe_file() -> None:
    terms = (
        ex.terms.L0(0.8, layers="fc*"),
        ex.terms.SoftThreshold(),
        ex.terms.GroupLasso(1e-3, by="columns"),
        ex.terms.Slimming(),
    )
    steps = (ex.Recover(terms=terms),)
    assert from_yaml(to_yaml(steps)) == steps
