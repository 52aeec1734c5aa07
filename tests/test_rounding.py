"""Quantize and Share with rounding by the data: nearer to the original than the nearest values, on every kind of layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from enxuto.artifact.save import load, save
from enxuto.errors import RangeError, RecipeError
from enxuto.layers.coded import coded_tensors
from enxuto.recipe import run
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.task import Step, Task
from enxuto.training.prepare import prepare
from toys import Block, Mlp, ResidualCnn, Tied, output, photograph, seeded, unchanged


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(6, 24, batch_first=True, bidirectional=True), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0].mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up1, self.up2 = nn.ConvTranspose2d(3, 16, 4, stride=2, padding=1), nn.ConvTranspose2d(16, 16, 3, stride=2, groups=2)
        self.down = nn.Conv2d(16, 8, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up2(torch.relu(self.up1(x)))))


SHAPES = {Mlp: (256, 12), ResidualCnn: (64, 3, 8, 8), Block: (64, 7, 6), Recurrent: (64, 9, 6), Decoder: (32, 3, 6, 6)}


def data(kind: type[nn.Module], seed: int, samples: int | None = None) -> Tensor:
    """Inputs whose features hang together, as those of real data do."""
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES[kind]
    x = torch.randn(shape if samples is None else (samples, *shape[1:]), generator=generator)
    return (x + x.mean(dim=tuple(range(1, x.ndim)), keepdim=True) * 4).relu()


def task(kind: type[nn.Module], seed: int = 0, samples: int | None = None) -> Task:
    return Task(seeded(kind, seed=seed), calibration=[data(kind, 1, samples), data(kind, 2, samples)])


def lost(kind: type[nn.Module], step: Step, given: Task) -> float:
    """The squared change of the outputs on data that the step did not see."""
    changed, _ = step(given.model, given)
    x = data(kind, 3)
    return float((output(changed, x) - output(given.model, x)).square().mean())


GRIDS: tuple[tuple[type, dict[str, object]], ...] = (
    (Quantize, {"bits": 4}),
    (Quantize, {"bits": 3, "per": "group", "group": 8}),
    (Quantize, {"bits": 6, "per": "network", "fit": "absmax"}),
    (Quantize, {"bits": 1}),
    (Share, {"bits": 3}),
)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("step", "sizes"), GRIDS)
def test_outputs_change_less_than_with_the_nearest_values(kind: type[nn.Module], step: type, sizes: dict[str, object]) -> None:
    """Of three networks together; one alone may be unlucky."""
    nearest, by_data = (
        sum(lost(kind, step(rounding=rounding, **sizes), task(kind, seed)) for seed in range(3))
        for rounding in ("nearest", "gptq")
    )
    assert by_data < 0.8 * nearest


@pytest.mark.parametrize("kind", SHAPES)
def test_three_samples_are_enough_to_do_no_harm(kind: type[nn.Module]) -> None:
    few = task(kind, samples=3)
    assert lost(kind, Quantize(4, rounding="gptq"), few) < 1.1 * lost(kind, Quantize(4), few)


@pytest.mark.parametrize("step", [Quantize(4, rounding="gptq", biases=8), Share(3, rounding="gptq")])
@pytest.mark.parametrize("kind", SHAPES)
def test_zeros_stay_files_give_the_same_and_the_original_is_left_alone(kind: type[nn.Module], step: Step, tmp_path: Path) -> None:
    given = task(kind)
    before = photograph(given.model)
    model, _ = run(given, [Prune(0.7), step])
    pruned, _ = Prune(0.7)(given.model, given)
    for name, tensor in coded_tensors(model).items():
        if "bias" not in name:
            assert (tensor()[pruned.get_parameter(name) == 0] == 0).all()
    save(model, tmp_path / "m.nxt", original=given.model)
    x = data(kind, 3)
    assert torch.equal(output(load(tmp_path / "m.nxt", into=seeded(kind)), x), output(model, x))
    assert unchanged(given.model, before)


def test_the_same_seed_gives_the_same_codes() -> None:
    first, second = (Quantize(4, rounding="gptq")(task(ResidualCnn).model, task(ResidualCnn))[0] for _ in range(2))
    assert all(torch.equal(one.codes, coded_tensors(second)[name].codes) for name, one in coded_tensors(first).items())


def test_what_no_product_reads_is_rounded_to_nearest_and_named() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.idle = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.table(x))

    given = Task(Lookup().eval(), calibration=[torch.arange(8).repeat(64).view(128, 4)])
    model, record = Quantize(4, rounding="gptq")(given.model, given)
    nearest, _ = Quantize(4)(given.model, given)
    assert [(change.path, change.what) for change in record.skipped] == [
        ("table.weight", "rounded to nearest"),
        ("idle.weight", "rounded to nearest"),
    ]
    codes, plain = coded_tensors(model), coded_tensors(nearest)
    assert torch.equal(codes["table.weight"].codes, plain["table.weight"].codes)
    assert not torch.equal(codes["fc.weight"].codes, plain["fc.weight"].codes)


def test_tied_weights_stay_tied() -> None:
    given = Task(seeded(Tied), calibration=[torch.arange(64).view(4, 16)])
    model, _ = Share(3, rounding="gptq")(given.model, given)
    codes = coded_tensors(model)
    assert codes["embed.weight"] is codes["head.weight"]


def test_dead_channels_and_weights_of_any_size_are_rounded_too() -> None:
    for size in (1e-6, 1e6):
        given = task(Mlp)
        with torch.no_grad():
            given.model.fc1.weight.mul_(size).index_fill_(0, torch.tensor([0, 1]), 0.0)
            given.model.fc2.weight.div_(size)
        assert lost(Mlp, Quantize(4, rounding="gptq"), given) < 0.8 * lost(Mlp, Quantize(4), given)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(RangeError, match="rounding='up' is not known; use one of 'nearest', 'gptq'"):
        Quantize(rounding="up")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="use one of"):
        Share(rounding="up")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [Quantize(4, rounding="gptq"), Share(3, rounding="gptq")])
def test_layers_keep_their_precision(step: Step, dtype: torch.dtype) -> None:
    model = seeded(Mlp).to(dtype)
    given = Task(model, calibration=[data(Mlp, 1).to(dtype)])
    made, _ = step(model, given)
    assert {tensor().dtype for name, tensor in coded_tensors(made).items() if "weight" in name} == {dtype}
    assert made(data(Mlp, 1).to(dtype)).dtype == dtype


def test_a_layer_tied_to_another_is_rounded_by_its_own_name() -> None:
    given = Task(seeded(Tied), calibration=[torch.arange(64).view(4, 16)])
    _, record = Quantize(4, layers="head", rounding="gptq")(given.model, given)
    assert "rounded to nearest" not in [change.what for change in record.skipped]


@pytest.mark.parametrize("kind", SHAPES)
def test_a_step_gives_each_weight_the_bits_that_its_influence_asks_for(kind: type[nn.Module]) -> None:
    """Coarser steps need fewer codes and move outputs more; neighbours that answer errors let steps be larger."""
    given = task(kind)
    found = {}
    for step in (1e-3, 1e-2):
        for rounding in ("nearest", "gptq"):
            model, _ = Quantize(tolerance=step, rounding=rounding)(given.model, given)
            codes = [tensor for name, tensor in coded_tensors(model).items() if "weight" in name]
            assert {tensor.grid.per for tensor in codes} == {"tensor"}
            found[step, rounding] = sum(int(tensor.integers().unique().numel()) for tensor in codes)
            assert lost(kind, Quantize(tolerance=step, rounding=rounding), given) < lost(kind, Quantize(1), given)
    assert found[1e-2, "gptq"] < found[1e-3, "gptq"]
    assert found[1e-2, "gptq"] <= found[1e-2, "nearest"]


def test_a_step_moves_outputs_by_what_it_says() -> None:
    """Of nearest values errors are independent: the outputs' error is that of all weights, a twelfth of a square each."""
    given = task(Mlp)
    model, _ = Quantize(tolerance=1e-3)(given.model, given)
    x = data(Mlp, 3)
    before = output(given.model, x)
    moved = float((output(model, x) - before).square().sum(1).mean() / before.var(0).sum())
    count = sum(tensor().numel() for name, tensor in coded_tensors(model).items())
    assert 0.3 < moved / (count * 1e-6 / 12) < 3


def test_a_step_is_the_same_whatever_the_scale_of_outputs_and_weights() -> None:
    given, large = task(Mlp), task(Mlp)
    with torch.no_grad():
        large.model.fc3.weight.mul_(1e5)
        large.model.fc3.bias.mul_(1e5)
    one, other = (coded_tensors(Quantize(tolerance=3e-3, rounding="gptq")(each.model, each)[0]) for each in (given, large))
    for name in one:
        assert (one[name].integers() - other[name].integers()).abs().max() <= 1, "rounding of 32 bits may turn a value"


def test_what_the_outputs_do_not_depend_on_keeps_eight_bits_and_is_named() -> None:
    class Idle(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.dead = nn.Linear(3, 3), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.dead(x).sum()

    given = Task(seeded(Idle), calibration=[data(Mlp, 1)])
    model, record = Quantize(tolerance=1e-2, rounding="gptq")(given.model, given)
    assert {change.path for change in record.skipped if change.what == "one scale, 8 bits"} == {"idle.weight", "dead.weight"}
    assert coded_tensors(model)["idle.weight"].grid.bits == 8


def test_an_embedding_gets_its_step_too() -> None:
    given = Task(seeded(Tied), calibration=[torch.arange(64).view(4, 16)])
    model, _ = Quantize(tolerance=1e-2, rounding="gptq")(given.model, given)
    assert coded_tensors(model)["embed.weight"].grid.bits < 8


@pytest.mark.parametrize("more", [{"bits": 4}, {"per": "group"}, {"fit": "absmax"}])
def test_a_step_beside_bits_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(RangeError, match=r"tolerance=0\.01 says how fine .* leave these out, or tolerance"):
        Quantize(tolerance=0.01, **more)


@pytest.mark.parametrize("step", [0, 1, -1e-3, float("nan"), "0.1", True])
def test_a_step_that_is_no_fraction_is_refused(step: object) -> None:
    with pytest.raises(RangeError, match="is a fraction of the outputs' spread"):
        Quantize(tolerance=step)  # type: ignore[arg-type]


def test_a_step_is_no_grid_to_train_on() -> None:
    with pytest.raises(RecipeError, match="while training use bits=4, or Quantize first"):
        prepare(task(Mlp), [Quantize(tolerance=0.01)])


@pytest.mark.parametrize("step", [Quantize(bits=4, rounding="gptq"), Share(bits=3, rounding="gptq")], ids=str)
def test_codes_that_train_are_the_nearest(step: Step) -> None:
    with pytest.raises(RecipeError, match=r"while training they are the nearest.*leave rounding out"):
        prepare(task(Mlp), [step])
