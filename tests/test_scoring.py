"""Prune by what the calibration batches say: scores and the refit on every kind of layer, and where the batches say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from enxuto.artifact.save import load, save
from enxuto.errors import RangeError, ShapeError
from enxuto.recipe import run
from enxuto.scoring import SCORES
from enxuto.sites import sites
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.task import Task
from enxuto.training.prepare import convert, prepare
from test_rounding import SHAPES, data, lost, task
from toys import Mlp, ResidualCnn, Tied, output, photograph, seeded, task_of, unchanged

BY_DATA = [name for name, score in SCORES.items() if score.evidence is not None]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("scope", ["global", "row"])
def test_every_score_takes_as_many_in_every_scope_with_and_without_refit(kind: type[nn.Module], scores: str, scope: str) -> None:
    given = task(kind)
    before = photograph(given.model)
    plain, _ = Prune(0.6, scores=scores, scope=scope)(given.model, given)  # type: ignore[arg-type]
    refit, _ = Prune(0.6, scores=scores, scope=scope, refit=True)(given.model, given)  # type: ignore[arg-type]
    for one, other in zip(sites(plain), sites(refit), strict=True):
        assert int((one.read() == 0).sum()) == int((other.read() == 0).sum())
    assert unchanged(given.model, before)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("scores", ["magnitude", "wanda"])
@pytest.mark.parametrize(
    "more", [{"scope": "layer"}, {"scope": "row"}, {"pattern": "2:4"}, {"block": (2, 1), "scope": "layer"}], ids=str
)
def test_outputs_change_less_where_what_stays_is_refit(kind: type[nn.Module], scores: str, more: dict[str, object]) -> None:
    """Of three networks together, on data that the step did not see."""
    plain, refit = (
        sum(lost(kind, Prune(0.5, scores=scores, refit=refit, **more), task(kind, seed)) for seed in range(3))  # type: ignore[arg-type]
        for refit in (False, True)
    )
    assert refit < 0.7 * plain


@pytest.mark.parametrize("scores", BY_DATA)
def test_outputs_change_less_by_the_data_than_by_magnitude(scores: str) -> None:
    """Where inputs are of many sizes, as magnitude cannot know."""

    def one(seed: int, scores: str) -> float:
        given = task(Mlp, seed)
        sizes = torch.logspace(-1, 1, 12)
        given = Task(given.model, calibration=[batch * sizes for batch in given.calibration])
        small, _ = Prune(0.5, scores=scores, scope="layer")(given.model, given)  # type: ignore[arg-type]
        x = data(Mlp, 3) * sizes
        return float((output(small, x) - output(given.model, x)).square().mean())

    assert sum(one(seed, scores) for seed in range(3)) < 0.7 * sum(one(seed, "magnitude") for seed in range(3))


def test_each_row_has_as_many_zeros() -> None:
    given = task(ResidualCnn)
    small, _ = Prune(0.7, scores="wanda", scope="row", refit=True)(given.model, given)
    for weight in sites(small):
        rows = weight.read().flatten(1)
        assert ((rows == 0).sum(1) == round(0.7 * rows.shape[1])).all()


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("refit", [False, True])
def test_blocks_stay_or_go_as_a_whole(scores: str, refit: bool) -> None:
    given = task(Mlp)
    step = Prune(0.5, scores=scores, block=(8, 2), layers=["fc1", "fc2"], refit=refit)  # type: ignore[arg-type]
    small, record = step(given.model, given)
    for weight in sites(small, ["fc1", "fc2"]):
        rows, width = weight.read().shape
        zeros = (weight.read() == 0).view(rows // 8, 8, width // 2, 2).float().mean((1, 3))
        assert set(zeros.flatten().tolist()) <= {0.0, 1.0}
    assert record.figures["sparsity"] == 0.5


def test_layers_that_a_block_does_not_divide_are_left_and_named() -> None:
    given = task(Mlp)
    small, record = Prune(0.5, block=(8, 1))(given.model, given)
    assert [(change.path, change.what) for change in record.skipped] == [("fc3.weight", "left alone")]
    assert torch.equal(small.fc3.weight, given.model.fc3.weight)
    with pytest.raises(ShapeError, match=r"block=\(7, 1\) takes matrices of a multiple of 7 by 1 weights"):
        Prune(0.5, block=(7, 1))(given.model, given)


@pytest.mark.parametrize("kind", SHAPES)
def test_three_samples_are_enough_to_do_no_harm(kind: type[nn.Module]) -> None:
    few = task(kind, samples=3)
    plain = lost(kind, Prune(0.5, scores="magnitude", scope="layer"), few)
    assert lost(kind, Prune(0.5, scores="magnitude", scope="layer", refit=True), few) < 1.1 * plain


@pytest.mark.parametrize("scores", BY_DATA)
@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_dead_channels_and_weights_of_any_size(scores: str, size: float) -> None:
    given = task(Mlp)
    with torch.no_grad():
        given.model.fc1.weight.mul_(size).index_fill_(0, torch.tensor([0, 1]), 0.0)
        given.model.fc1.bias.mul_(size).index_fill_(0, torch.tensor([0, 1]), 0.0)
        given.model.fc2.weight.div_(size)
    step = Prune(0.5, scores=scores, scope="layer")  # type: ignore[arg-type]
    small, _ = step(given.model, given)
    assert not small.fc2.weight[:, :2].any()  # they meet nothing
    refit = Prune(0.5, scores=scores, scope="layer", refit=True)  # type: ignore[arg-type]
    assert lost(Mlp, refit, given) < 0.7 * lost(Mlp, step, given)


def test_what_the_batches_say_nothing_of_goes_by_magnitude_and_is_named() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.idle = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.table(x))

    given = Task(Lookup().eval(), calibration=[torch.arange(8).view(2, 4)])
    small, record = Prune(0.5, scores="wanda", refit=True)(given.model, given)
    plain, _ = Prune(0.5, scores="magnitude", scope="layer")(given.model, given)
    by_magnitude = "scored by magnitude, compared within itself"
    not_refit = "what stays is not refit"
    assert [(change.path, change.what) for change in record.skipped] == [
        ("table.weight", by_magnitude),
        ("idle.weight", by_magnitude),
        ("table.weight", not_refit),
        ("idle.weight", not_refit),
    ]
    assert torch.equal(small.table.weight, plain.table.weight)
    assert torch.equal(small.idle.weight, plain.idle.weight)


def test_a_table_that_is_a_layer_too_is_not_refit_and_coded_weights_stay_on_their_grid() -> None:
    given = Task(seeded(Tied), calibration=[torch.arange(64).view(4, 16)])
    small, record = Prune(0.5, scores="wanda", scope="layer", refit=True)(given.model, given)
    assert torch.equal(small.embed.weight, small.head.weight)
    stays = small.embed.weight != 0
    assert torch.equal(small.embed.weight[stays], given.model.embed.weight[stays])
    assert [change.path for change in record.skipped] == ["embed.weight"]
    coded, _ = Quantize(4)(given.model, given)
    pruned, record = Prune(0.5, scores="wanda", refit=True)(coded, given)
    assert {change.path for change in record.skipped if change.why == "its values lie on a grid"} == {
        "embed.weight",
        "mix.weight",
    }
    for before, after in zip(sites(coded), sites(pruned), strict=True):
        assert torch.equal(after.read()[after.read() != 0], before.read()[after.read() != 0])


@pytest.mark.parametrize("scores", BY_DATA)
def test_pruning_further_never_revives_a_zero(scores: str) -> None:
    given = task(ResidualCnn)
    first, _ = Prune(0.4, scores=scores, scope="layer", refit=True)(given.model, given)  # type: ignore[arg-type]
    second, _ = Prune(0.7, scores=scores, scope="layer", refit=True)(first, given)  # type: ignore[arg-type]
    for before, after in zip(sites(first), sites(second), strict=True):
        assert not after.read()[before.read() == 0].any()
        assert int((after.read() == 0).sum()) == round(0.7 * after.read().numel())


def test_the_same_seed_gives_the_same_and_files_give_it_back(tmp_path: Path) -> None:
    given = task(ResidualCnn)
    steps = [Prune(0.6, scores="taylor", scope="layer", refit=True), Quantize(4, rounding="gptq")]
    (first, _), (second, _) = run(given, steps), run(given, steps)
    save(first, tmp_path / "m.nxt", original=given.model)
    x = data(ResidualCnn, 3)
    assert torch.equal(output(first, x), output(second, x))
    assert torch.equal(output(load(tmp_path / "m.nxt", into=seeded(ResidualCnn)), x), output(first, x))


@pytest.mark.parametrize("scores", BY_DATA)
def test_in_training_scores_that_need_data_are_magnitude(scores: str) -> None:
    given = task_of(Mlp)
    by_data, plain = (
        convert(prepare(given, [Prune(0.5, scores=each, scope="row", refit=True)]))  # type: ignore[arg-type]
        for each in (scores, "magnitude")
    )
    for one, other in zip(sites(by_data), sites(plain), strict=True):
        assert torch.equal(one.read(), other.read())
        assert int((one.read() == 0).sum()) == round(0.5 * one.read().numel())


@pytest.mark.parametrize("block", [(0, 1), (8,), "8,1", (1.0, 2), 8, (True, 1)])
def test_a_block_that_makes_no_sense_is_refused(block: object) -> None:
    with pytest.raises(RangeError, match=r"write \(8, 1\)"):
        Prune(block=block)  # type: ignore[arg-type]


def test_a_pattern_and_a_block_are_two_patterns() -> None:
    with pytest.raises(RangeError, match="two patterns"):
        Prune(pattern="2:4", block=(8, 1))
