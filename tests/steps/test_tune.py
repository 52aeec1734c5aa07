"""Tune: outputs come back to the original's, codes and zeros stay, and what does not help is given up."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import LayerError, NothingChangedError, RangeError
from enxuto.layers.coded import coded_tensors
from enxuto.recipe import run
from enxuto.sites import sites
from enxuto.task import Task
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


def test_what_does_not_help_is_given_up() -> None:
    task = Task(seeded(Mlp), calibration=samples(Mlp))
    with pytest.raises(NothingChangedError, match="samples kept aside are 0 of their spread"):
        ex.Tune(passes=2)(task.model, task)
    _, records = run(task, [ex.Tune(passes=2), ex.Prune(0.5)])
    assert "better" in records[0].skipped[0].why
    blind = nn.Sequential(nn.Flatten(), nn.Softmax(dim=1))
    with pytest.raises(NothingChangedError, match="no parameter moves the outputs"):
        ex.Tune()(blind, Task(blind, calibration=samples(Mlp)))


def test_three_samples_are_enough_to_try_and_one_is_refused() -> None:
    task = Task(seeded(Mlp), calibration=[samples(Mlp)[0][:3]])
    pruned, _ = ex.Prune(0.6)(task.model, task)
    _, record = ex.Tune(passes=2)(pruned, task)
    assert record.figures["output_error"] < record.figures["output_error_before"]
    with pytest.raises(NothingChangedError, match="holds a single sample"):
        ex.Tune()(pruned, Task(task.model, calibration=[samples(Mlp)[0][:1]]))


@pytest.mark.parametrize(("arguments", "word"), [({"passes": 0}, "passes=0"), ({"learning_rate": 0.0}, "learning_rate=0.0")])
def test_what_makes_no_sense_is_refused(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(RangeError, match=word):
        ex.Tune(**arguments)  # type: ignore[arg-type]
