"""Tune: outputs come back to the original's, codes and zeros stay, and what does not help is given up."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import GradientError, LayerError, NothingChangedError, RangeError, TaskError
from enxuto.layers.coded import coded_tensors
from enxuto.plan.search import Search
from enxuto.recipe import run
from enxuto.sites import sites
from enxuto.task import Evaluate, Task
from enxuto.training.tuning import HARDLY, Wanted, halves, harmed, together_off
from toys import Block, Mlp, ResidualCnn, output, photograph, seeded, unchanged

SHAPES = {Mlp: (12,), ResidualCnn: (3, 8, 8), Block: (7, 6)}
STEPS = [ex.Prune(0.6, scope="layer"), ex.Quantize(bits=3, biases=8), ex.Quantize(bits=3, per="tensor"), ex.Share(bits=2)]


def samples(kind: type[nn.Module], count: int = 96, seed: int = 3) -> list[Tensor]:
    drawn = torch.randn(count, *SHAPES[kind], generator=torch.Generator().manual_seed(seed)) + 0.5
    return list(drawn.split(32))


def far(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    return float((output(model, x) - output(original, x)).norm() / output(original, x).norm())


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_outputs_of_samples_never_seen_come_nearer_and_codes_stay(kind: type[nn.Module], step: ex.Prune) -> None:
    task = Task(seeded(kind), calibration=samples(kind, 192))
    changed, _ = step(task.model, task)
    before, picture = copy.deepcopy(changed), photograph(changed)
    tuned, record = ex.Tune()(changed, task)
    new = samples(kind, seed=9)[0]
    assert far(tuned, task.model, new) < 0.9 * far(changed, task.model, new)
    assert record.figures["output_error"] < record.figures["output_error_before"]
    unchanged(changed, picture)
    for one, other in zip(coded_tensors(before).values(), coded_tensors(tuned).values(), strict=True):
        assert len(one.shape) < 2 or torch.equal(one.codes, other.codes)
    for one_site, other_site in zip(sites(before), sites(tuned), strict=True):
        assert torch.equal(one_site.read() == 0, other_site.read() == 0), "zeros stay"


def test_the_size_of_the_file_stays_and_it_loads_to_the_bit(tmp_path: Path) -> None:
    task = Task(seeded(Block), calibration=samples(Block))
    coded, _ = ex.Quantize(bits=4, per="tensor", biases=8)(task.model, task)
    tuned, _ = ex.Tune(passes=10)(coded, task)
    for name, model in (("coded", coded), ("tuned", tuned)):
        ex.save(model, tmp_path / f"{name}.nxt", original=task.model)
    sizes = [(tmp_path / f"{name}.nxt").stat().st_size for name in ("coded", "tuned")]
    assert abs(sizes[1] - sizes[0]) < 0.1 * sizes[0]
    x = samples(Block)[0]
    assert torch.equal(output(ex.load(tmp_path / "tuned.nxt", into=task.model), x), output(tuned, x))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_numbers_of_any_scale_are_tuned_alike(scale: float) -> None:
    model = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.Linear(32, 4)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        model[2].weight.mul_(scale)
        model[2].bias.copy_(scale * torch.randn(4))
    task = Task(model, calibration=samples(Mlp, 192))
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong[2].bias.zero_()
        wrong[1].weight.mul_(1.5)
    tuned, record = ex.Tune()(wrong, task)
    assert record.figures["output_error"] < 0.2 * record.figures["output_error_before"]
    assert float(tuned[2].bias.detach().abs().max()) > 0.2 * scale


def test_the_same_seed_gives_the_same_numbers() -> None:
    task = Task(seeded(ResidualCnn), calibration=samples(ResidualCnn), seed=5)
    pruned, _ = ex.Prune(0.5)(task.model, task)
    one, other = (ex.Tune(passes=3)(pruned, task)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_only_what_is_asked_for_moves() -> None:
    task = Task(seeded(Mlp), calibration=samples(Mlp))
    pruned, _ = ex.Prune(0.6)(task.model, task)
    first = next(path for path, module in pruned.named_modules() if isinstance(module, nn.Linear))
    _, record = ex.Tune(passes=3, layers=first)(pruned, task)
    assert {change.path for change in record.changes} == {f"{first}.bias", f"{first}.weight"}
    with pytest.raises(LayerError, match="matches nothing"):
        ex.Tune(layers="nowhere")(pruned, task)


def test_tied_weights_stay_tied_and_a_layer_no_gradient_reaches_is_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.one, self.other = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.backbone(x).relu()
            return self.other(self.one(x).relu())

    torch.manual_seed(0)
    task = Task(Tied().eval(), calibration=samples(Mlp))
    pruned, _ = ex.Prune(0.5)(task.model, task)
    tuned, record = ex.Tune(passes=5)(pruned, task)
    assert tuned.one.weight is tuned.other.weight
    assert {change.path for change in record.skipped} == {"backbone.weight", "backbone.bias"}
    assert "no gradient" in record.skipped[0].why
    with pytest.raises(NothingChangedError, match="no parameter moves the outputs"):
        ex.Tune(layers="backbone")(pruned, task)


def test_what_does_not_help_is_given_up() -> None:
    task = Task(seeded(Mlp), calibration=samples(Mlp))
    with pytest.raises(NothingChangedError, match="samples kept aside are the original's as they are"):
        ex.Tune(passes=2)(task.model, task)
    _, records = run(task, [ex.Tune(passes=2), ex.Prune(0.5)])
    assert "as they are" in records[0].skipped[0].why


def test_three_samples_are_enough_to_try_and_one_is_refused() -> None:
    task = Task(seeded(Mlp), calibration=[samples(Mlp)[0][:3]])
    pruned, _ = ex.Prune(0.6)(task.model, task)
    _, record = ex.Tune(passes=2)(pruned, task)
    assert record.figures["output_error"] < record.figures["output_error_before"]
    with pytest.raises(NothingChangedError, match="holds 1 samples in one batch that is not parted"):
        ex.Tune()(pruned, Task(task.model, calibration=[samples(Mlp)[0][:1]]))


@pytest.mark.parametrize(("arguments", "word"), [({"passes": 0}, "passes=0"), ({"learning_rate": 0.0}, "learning_rate=0.0")])
def test_what_makes_no_sense_is_refused(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(RangeError, match=word):
        ex.Tune(**arguments)  # type: ignore[arg-type]


class Looking(nn.Module):
    """Attention as people write it, and a convolution before an instance norm: two biases that move no output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(6, 12, 1), nn.InstanceNorm1d(12)
        self.q, self.k, self.v, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x.transpose(1, 2))).transpose(1, 2)
        seen = (self.q(h) @ self.k(h).transpose(1, 2) / 3).softmax(-1) @ self.v(h)
        scores: Tensor = self.last((h + seen).mean(1))
        return scores


def test_biases_whose_gradients_are_rounding_stay() -> None:
    torch.manual_seed(0)
    task = Task(Looking().eval(), calibration=list(torch.randn(128, 7, 6).split(32)))
    coded, _ = ex.Quantize(bits=2)(task.model, task)
    tuned, record = ex.Tune(passes=10)(coded, task)
    assert {change.path: change.why for change in record.skipped} == dict.fromkeys(("first.bias", "k.bias"), HARDLY)
    for path in ("first", "k"):
        assert torch.equal(tuned.get_submodule(path).bias, task.model.get_submodule(path).bias)
    assert max(float(each.detach().abs().max()) for each in tuned.parameters()) < 5
    assert record.figures["output_error"] < record.figures["output_error_before"]


class Several(nn.Module):
    """An output that can move, and the features of a frozen backbone, which cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(12, 12)
        self.head = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            features = self.backbone(x)
        return {"features": features, "scores": self.head(features)}


def test_an_output_that_nothing_moves_does_not_stand_in_the_way() -> None:
    torch.manual_seed(0)
    task = Task(Several().eval(), calibration=samples(Mlp))
    coded, _ = ex.Quantize(bits=2)(task.model, task)
    tuned, _ = ex.Tune()(coded, task)
    new = samples(Mlp, seed=9)[0]
    with torch.no_grad():
        whole, before, after = (model(new) for model in (task.model, coded, tuned))
    assert torch.equal(before["features"], after["features"])
    assert (after["scores"] - whole["scores"]).norm() < 0.9 * (before["scores"] - whole["scores"]).norm()


def test_an_output_that_ends_farther_off_is_too_much_whatever_others_win() -> None:
    assert harmed({"a": 1.0, "b": 0.2}, {"a": 0.1, "b": 0.3}) == ["b"]
    assert harmed({"a": 1.0, "b": 0.01}, {"a": 0.1, "b": 0.04}) == []
    assert harmed({"a": 0.1}, {"a": math.nan}) == ["a"]
    assert together_off({"a": 3.0, "b": 4.0}) == pytest.approx(math.sqrt(12.5))


def test_spread_is_that_of_all_samples_and_not_of_those_kept_aside() -> None:
    """A class that is hardly ever named has next to no spread on a few samples: by it anything is far off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), nn.Softmax(dim=1)).eval()
    x = 3 * torch.randn(64, 12)
    coded, _ = ex.Quantize(bits=3)(model, Task(model, calibration=[x]))
    errors = []
    for size in (64, 16, 4, 1):
        by, aside = halves(model, list(x.split(size)))
        errors += Wanted.of(model, [*by, *aside], None).off(coded, len(by)).values()
    assert max(errors) < 2.5 * min(errors)


def test_networks_without_gradients_are_told_so_and_searched_all_the_same(tmp_path: Path) -> None:
    class InPlace(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self[0](x))
            hidden.mul_(2)
            scores: Tensor = self[1](hidden)
            return scores

    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    class Array(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(super().forward(x).numpy() * 2)

    torch.manual_seed(0)
    for model in (InPlace(nn.Linear(12, 8), nn.Linear(8, 4)).eval(), Named(12, 4).eval(), Array(12, 4).eval()):
        task = Task(model, calibration=samples(Mlp))
        coded, _ = ex.Quantize(bits=2)(model, task)
        with pytest.raises((GradientError, NothingChangedError), match=r"gradients|no output that counts holds real numbers"):
            ex.Tune(passes=1)(coded, task)
        (tmp_path / type(model).__name__).mkdir()
        search = Search(task, ex.Target(max_drop=0.5), 30.0, tmp_path / type(model).__name__, agreed(model), math.inf)
        search.run()
        assert search.best >= 0
    with torch.inference_mode(), pytest.raises(GradientError, match=r"called inside torch.inference_mode"):
        ex.Tune(passes=1)(coded, task)


def agreed(model: nn.Module) -> Evaluate:
    x = samples(Mlp)[0]
    whole = output(model, x)
    return lambda other: (other(x) == whole).float() if whole.ndim == 1 else (other(x).argmax(1) == whole.argmax(1)).float()


def test_a_network_in_parallel_is_tuned() -> None:
    torch.manual_seed(0)
    task = Task(nn.DataParallel(seeded(Mlp)).eval(), calibration=samples(Mlp))
    coded, _ = ex.Quantize(bits=2)(task.model, task)
    tuned, record = ex.Tune(passes=5)(coded, task)
    assert isinstance(tuned, nn.DataParallel)
    assert record.figures["output_error"] < record.figures["output_error_before"]


def test_an_answer_that_is_no_number_is_told_of_with_its_batch() -> None:
    task = Task(seeded(Mlp), calibration=samples(Mlp))
    coded, _ = ex.Quantize(bits=2)(task.model, task)
    task.calibration[1][3] = math.nan  # type: ignore[index]
    with pytest.raises(TaskError, match=r"gives NaN on calibration batch 2"):
        ex.Tune(passes=1)(coded, task)
