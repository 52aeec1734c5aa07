from __future__ import annotations

import copy
import dataclasses
import functools
from collections import UserDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from channel_nets import Literal, image_nets
from enxuto.compression import compress
from enxuto.cut import Group
from enxuto.errors import ExportError, LayerError, NothingChangedError, RangeError, TargetError
from enxuto.groups import find_groups
from enxuto.macs import total_macs
from enxuto.memory import fits, predict
from enxuto.steps.channels import PruneChannels
from enxuto.steps.factorize import Factorize
from enxuto.steps.fold import Fold
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.surgery import to_float
from enxuto.task import Step, Target, Task
from enxuto.zoo import build

NETS = image_nets()
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def groups_of(name: str) -> tuple[Group, ...]:
    return find_groups(NETS[name], IMAGES).groups


def task_for(model: nn.Module) -> Task:
    return Task(model, calibration=[IMAGES[:12], IMAGES[12:]])


def outputs(model: nn.Module, x: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def silenced(name: str) -> tuple[nn.Module, int]:
    """A copy in which units chosen by chance have zero weights, biases and norms, and how many they are."""
    model, chance, count = copy.deepcopy(NETS[name]), np.random.default_rng(3), 0
    for group in groups_of(name):
        units = chance.choice(group.size, group.size // 2, replace=False)
        count += len(units)
        for part in group.slices:
            tensor = getattr(model.get_submodule(part.path), part.name)
            if isinstance(tensor, nn.Parameter) and (part.writes or not part.reads):
                tensor.data.index_fill_(part.dim, torch.tensor(part.indices(units)), 0.0)
    return model, count


@pytest.mark.parametrize(
    "name",
    ["residual", "depthwise", "dense", "grouped", "shuffled", "permuted", "lstm", "gru", "bidirectional lstm",
     "bidirectional gru", "projected lstm", "steps", "gates", "padded", "tokens"],
)  # fmt: skip
def test_channels_that_are_zero_come_out_and_no_output_changes(name: str) -> None:
    model, count = silenced(name)
    smaller, record = PruneChannels()(model, task_for(model))
    scale = float(outputs(model).abs().max())
    torch.testing.assert_close(outputs(smaller), outputs(model), rtol=0, atol=2e-6 * max(scale, 1.0))
    assert record.figures["parameters_after"] < record.figures["parameters_before"]
    assert all("zero for every input" in change.why for change in record.changes)
    gone = sum(int(change.what.split()[3]) - int(change.what.split()[1]) for change in record.changes)
    assert gone == count


def test_nothing_to_do_is_an_error_that_names_what_stays_and_why() -> None:
    model = NETS["tokens"]
    with pytest.raises(NothingChangedError, match=r"attention mixes the channels.*macs="):
        PruneChannels()(model, task_for(model))


@pytest.mark.parametrize(
    ("name", "scores"),
    [("residual", "taylor"), ("residual", "magnitude"), ("depthwise", "taylor"), ("dense", "magnitude"),
     ("grouped", "taylor"), ("permuted", "magnitude"), ("lstm", "magnitude"), ("bidirectional gru", "taylor"),
     ("gates", "taylor")],
)  # fmt: skip
def test_the_measured_macs_are_at_or_just_below_the_goal(name: str, scores: str) -> None:
    model = NETS[name]
    smaller, record = PruneChannels(macs=0.6, scores=scores)(model, task_for(model))  # type: ignore[arg-type]
    before, after = total_macs(model, IMAGES), total_macs(smaller, IMAGES)
    assert (record.figures["macs_before"], record.figures["macs_after"]) == (before, after)
    assert 0.45 * before < after <= 0.6 * before
    assert bool(torch.isfinite(outputs(smaller)).all())


def test_the_input_model_is_never_edited() -> None:
    model = copy.deepcopy(NETS["residual"]).train()
    before = copy.deepcopy(model.state_dict())
    smaller, _ = PruneChannels(sparsity=0.5)(model, task_for(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert smaller.training
    assert smaller.conv1.out_channels == 6


def test_sparsity_takes_the_same_part_of_every_group() -> None:
    model = NETS["dense"]
    smaller, record = PruneChannels(sparsity=0.5)(model, task_for(model))
    assert [group.size for group in find_groups(smaller, IMAGES).groups] == [3, 2, 2, 2]
    assert record.changes[0].what.startswith("kept 3 of 6 channels: stem, convs.0")


def test_what_is_left_is_a_multiple() -> None:
    model = NETS["residual"]
    smaller, _ = PruneChannels(sparsity=0.6, multiple_of=4)(model, task_for(model))
    assert (smaller.stem[0].out_channels, smaller.conv1.out_channels, smaller.short.out_channels) == (4, 8, 8)


def test_a_goal_in_macs_keeps_multiples_of_8_where_that_comes_close() -> None:
    model = build("resnet-8", in_channels=3).eval()
    smaller, _ = PruneChannels(macs=0.5)(model, task_for(model))
    widths = [module.out_channels for module in smaller.modules() if isinstance(module, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert total_macs(smaller, IMAGES) > 0.4 * total_macs(model, IMAGES)


def test_a_multiple_that_was_asked_for_is_kept() -> None:
    model = NETS["depthwise"]
    with pytest.raises(TargetError, match="use multiple_of=1"):
        PruneChannels(macs=0.05, multiple_of=8)(model, task_for(model))
    figures = PruneChannels(macs=0.1)(model, task_for(model))[1].figures
    assert 0.06 < figures["macs_after"] / figures["macs_before"] <= 0.1


def test_hidden_units_of_a_recurrent_layer_are_counted_once_for_all_gates() -> None:
    model = NETS["bidirectional gru"]
    smaller, _ = PruneChannels(sparsity=0.3, multiple_of=4)(model, task_for(model))
    assert smaller.rnn.hidden_size == 8


def test_layers_restricts_to_groups_whose_writers_all_match() -> None:
    model = NETS["residual"]
    smaller, record = PruneChannels(sparsity=0.5, layers=["conv1", "conv2"])(model, task_for(model))
    assert [change.path for change in record.changes] == ["conv1"]
    assert (smaller.conv1.out_channels, smaller.conv2.out_channels) == (6, 8)
    with pytest.raises(LayerError, match="matches nothing"):
        PruneChannels(sparsity=0.5, layers="nowhere")(model, task_for(model))
    with pytest.raises(NothingChangedError, match="no channels can be cut"):
        PruneChannels(sparsity=0.5, layers="fc")(model, task_for(model))


def test_zero_channels_go_first_even_when_magnitude_would_keep_them() -> None:
    model = copy.deepcopy(NETS["permuted"])
    with torch.no_grad():
        model.fc1.weight[4], model.fc1.bias[4] = 0, 0
        model.fc2.weight[:, 4] = 1e3  # a zero that is read loudly
    smaller, _ = PruneChannels(sparsity=0.12, scores="magnitude", layers="fc1")(model, task_for(model))
    assert smaller.fc2.in_features == 8
    assert float(smaller.fc2.weight.detach().max()) < 1e3
    torch.testing.assert_close(outputs(smaller), outputs(model), rtol=1e-5, atol=1e-5)


def test_a_goal_out_of_reach_says_what_is_possible() -> None:
    model = NETS["literal"]
    with pytest.raises(TargetError, match=r"macs=0.1 cannot be reached.*0\.\d+ of the MACs are left"):
        PruneChannels(macs=0.1)(model, task_for(model))


def test_a_literal_in_forward_is_named_in_the_record() -> None:
    model = Literal().eval()
    smaller, record = PruneChannels(sparsity=0.4)(model, task_for(model))
    assert smaller.fc1.out_features == 5
    assert {change.path: change.why for change in record.skipped}["conv"].startswith("forward writes a size as a literal")


@pytest.mark.parametrize(
    "wrong",
    [{"macs": 0.0}, {"macs": 1.5}, {"sparsity": 1.0}, {"sparsity": -0.1}, {"macs": 0.5, "sparsity": 0.5},
     {"scores": "luck"}, {"multiple_of": 0}],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RangeError):
        PruneChannels(**wrong)  # type: ignore[arg-type]


def test_the_same_seed_cuts_the_same_channels() -> None:
    model = NETS["residual"]
    first, _ = PruneChannels(macs=0.5)(model, task_for(model))
    second, _ = PruneChannels(macs=0.5)(model, task_for(model))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("first", [Quantize(bits=4), Share(bits=3), Factorize(rank=3), Fold()])
def test_channels_of_a_model_that_another_step_changed_are_cut_too(first: Step) -> None:
    model = NETS["residual"]
    changed, _ = first(model, task_for(model))
    smaller, record = PruneChannels(macs=0.6)(changed, task_for(changed))
    assert type(smaller.conv1) is type(changed.conv1)
    assert record.figures["macs_after"] <= 0.6 * record.figures["macs_before"]
    assert record.figures["macs_after"] == total_macs(to_float(smaller), IMAGES)
    assert bool(torch.isfinite(outputs(smaller)).all())


@pytest.mark.parametrize("kind", [Quantize(bits=8), Share(bits=4)])
@pytest.mark.parametrize("name", ["residual", "lstm", "depthwise"])
def test_coded_channels_that_are_zero_come_out_exactly(name: str, kind: Step) -> None:
    model, _ = silenced(name)
    coded, _ = kind(model, task_for(model))
    smaller, _ = PruneChannels()(coded, task_for(coded))
    torch.testing.assert_close(outputs(smaller), outputs(coded), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small batch-normed network that has learnt which of four noisy patterns an image holds."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 1, 8, 8, generator=generator)

    def data(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, 4, (count,), generator=generator)
        return patterns[y] + 1.5 * torch.randn(count, 1, 8, 8, generator=generator), y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 4),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(60):
            x, y = data(64)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), *data(1000)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((outputs(model, x).argmax(1) == y).float().mean())


def test_half_of_the_macs_can_go_from_a_trained_network(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    task = Task(model, calibration=list(x[:256].split(32)))
    smaller, _ = PruneChannels(macs=0.5)(model, task)
    assert accuracy(model, x[256:], y[256:]) > 0.9
    assert accuracy(smaller, x[256:], y[256:]) > accuracy(model, x[256:], y[256:]) - 0.1


def test_taylor_scores_keep_more_than_cutting_what_matters_most(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    task = Task(model, calibration=list(x[:256].split(32)))
    smaller, _ = PruneChannels(macs=0.4)(model, task)
    chance = [PruneChannels(macs=0.4, scores="magnitude")(model, task)[0]]
    assert accuracy(smaller, x, y) >= accuracy(chance[0], x, y)


def test_batch_norm_is_estimated_again_after_a_lossy_cut(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = trained
    smaller, _ = PruneChannels(sparsity=0.5)(model, Task(model, calibration=list(x[:256].split(32))))
    with torch.no_grad():
        seen = smaller[:4](x)
    norm = smaller[4]
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=0.1, atol=0.1)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=0.2, atol=0.1)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e36])
def test_a_network_of_extreme_scales_is_cut_like_any_other(scale: float) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()
    x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[0].bias.mul_(scale)
    task = Task(net, calibration=[x])
    smaller, record = PruneChannels(macs=0.5)(net, task)
    assert record.figures["macs_after"] <= 0.5 * record.figures["macs_before"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in smaller.state_dict().values())
    assert bool(torch.isfinite(smaller.eval()(x)).all())


@dataclasses.dataclass
class Scores:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Opaque:
    """A class of which nobody knows what it holds."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Holding(nn.Module):
    """Three layers whose outputs come in what `holder` makes of them."""

    def __init__(self, holder: Callable[..., object] = lambda logits, hidden: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(64, 48), nn.Linear(48, 4)
        self.holder = holder

    def forward(self, x: Tensor) -> object:
        h = self.a(x).relu()
        return self.holder(self.c(self.b(h).relu()), h[:, :1])


HOLDERS = {
    "dataclass": lambda logits, hidden: Scores(logits),
    "dataclasses inside": lambda logits, hidden: {"out": [Scores(logits)], "none": None, "words": "text", "number": 3},
    "an own kind of dict": lambda logits, hidden: UserDict(logits=logits),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("scores", ["taylor", "magnitude"])
def test_what_holds_the_outputs_changes_nothing_of_what_is_cut(holder: str, scores: str) -> None:
    x = torch.randn(64, 16)
    plain, held = (Task(net.eval(), calibration=[x]) for net in (Holding(), Holding(HOLDERS[holder])))
    step = PruneChannels(macs=0.5, scores=scores)
    smaller, record = step(plain.model, plain)
    other, same = step(held.model, held)
    assert same.changes == record.changes
    assert record.figures["macs_after"] <= 0.5 * record.figures["macs_before"]
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in smaller.state_dict().items()}
    assert fits(held.model, x).ram_bytes == fits(plain.model, x).ram_bytes
    assert predict(held.model, x).peak_bytes == predict(plain.model, x).peak_bytes
    assert not held.model._forward_hooks


def test_all_that_an_output_holds_stays_whole() -> None:
    x = torch.randn(64, 16)
    expected = find_groups(Holding(lambda logits, hidden: (logits, hidden)).eval(), x)
    assert [group.writers for group in expected.groups] == [("b",)]
    for holder in (Scores, lambda logits, hidden: {"out": Scores(logits, (hidden,))}):
        found = find_groups(Holding(holder).eval(), x)
        assert [group.writers for group in found.groups] == [("b",)]
        assert found.frozen == expected.frozen


def test_a_class_that_torch_cannot_follow_is_named_once_with_all_layers() -> None:
    x = torch.randn(64, 16)
    model = Holding(lambda logits, hidden: (logits, Opaque(hidden))).eval()
    with pytest.raises(
        NothingChangedError, match=r"'a', 'b', 'c': torch.export cannot follow this model: Found .*Opaque"
    ) as caught:
        PruneChannels(macs=0.5)(model, Task(model, calibration=[x]))
    assert str(caught.value).count("torch.export") == 1
    with pytest.raises(
        ExportError, match=r"Opaque.*; a forward works that returns tensors in tuples, lists, dicts or dataclasses"
    ):
        fits(model, x)
    with pytest.raises(TargetError, match=r"no recipe could be applied .*PruneChannels.*'a', 'b', 'c': torch.export .*Opaque"):
        compress(Task(model, calibration=[x]), target=Target(macs=0.5, max_drop=0.3), time="10 s")


@pytest.mark.parametrize("goal", [{"sparsity": 0.25}, {"macs": 0.7}])
def test_layers_that_no_gradient_reaches_are_no_longer_the_first_to_go(goal: dict[str, float]) -> None:
    """A frozen backbone under no_grad has no Taylor scores: zeros for its channels would say that none of them matters."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten())
            self.head = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.backbone(x)
            out: Tensor = self.head(features)
            return out

    torch.manual_seed(0)
    task = Task(Frozen().eval(), calibration=[IMAGES])
    blind, record = PruneChannels(multiple_of=1, **goal)(task.model, task)
    told = [change for change in record.skipped if "scored by magnitude" in change.what]
    assert [change.path for change in told] == ["backbone.0"]
    assert "no_grad" in told[0].why
    assert all("lowest magnitude scores" in change.why for change in record.changes)
    other, _ = PruneChannels(multiple_of=1, scores="magnitude", **goal)(task.model, task)
    assert [p.shape for p in blind.parameters()] == [p.shape for p in other.parameters()]
