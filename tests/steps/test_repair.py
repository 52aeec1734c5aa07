"""Repair: statistics and biases move back to the original's, by as much as the samples show and no more."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import LayerError, NothingChangedError, RangeError, TaskError
from enxuto.layers.coded import coded_tensors
from enxuto.recipe import run
from enxuto.task import Task
from toys import Block, Mlp, ResidualCnn, output, photograph, seeded, unchanged

SHAPES = {Mlp: (12,), ResidualCnn: (3, 8, 8), Block: (7, 6)}


def samples(kind: type[nn.Module], count: int = 96, seed: int = 3) -> list[Tensor]:
    drawn = torch.randn(count, *SHAPES[kind], generator=torch.Generator().manual_seed(seed)) + 0.5
    return list(drawn.split(32))


def settled(kind: type[nn.Module]) -> nn.Module:
    """A network whose norms hold the statistics of its samples, as training leaves them."""
    model = seeded(kind)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.cat(samples(kind)))
    return model.eval()


def task_for(kind: type[nn.Module], count: int = 96) -> Task:
    return Task(settled(kind), calibration=samples(kind, count))


def shifted(model: nn.Module) -> nn.Module:
    """The same with every bias and every mean of a norm moved, each channel by its own amount."""
    made, chance = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for path, module in made.named_modules():
        for name in ("bias", "running_mean"):
            held = getattr(module, name, None)
            if isinstance(held, Tensor) and "attention" not in path:
                held.data += 0.2 * torch.randn(held.shape, generator=chance)
    return made


def far(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    return float((output(model, x) - output(original, x)).norm() / output(original, x).norm())


@pytest.mark.parametrize("kind", [Mlp, Block])
def test_biases_that_were_moved_come_back(kind: type[nn.Module]) -> None:
    task = task_for(kind)
    repaired, record = ex.Repair(gains=False)(shifted(task.model), task)
    new = samples(kind, seed=9)[0]
    assert far(repaired, task.model, new) < 0.15 * far(shifted(task.model), task.model, new)
    assert record.figures["output_error"] < record.figures["output_error_before"]
    assert {change.what for change in record.changes} == {"bias moved"}


def test_statistics_of_norms_come_back() -> None:
    task = task_for(ResidualCnn)
    wrong = copy.deepcopy(task.model)
    wrong.conv1.weight.data *= torch.linspace(0.5, 2, 8)[:, None, None, None]
    repaired, record = ex.Repair(biases=False)(wrong, task)
    assert far(repaired, task.model, samples(ResidualCnn)[0]) < 0.02 < far(wrong, task.model, samples(ResidualCnn)[0])
    assert record.changes[0].path == "bn1"
    assert torch.allclose(repaired.bn1.running_var / task.model.bn1.running_var, torch.linspace(0.5, 2, 8) ** 2, rtol=0.05)


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize("step", [ex.Prune(0.6, scope="layer"), ex.Quantize(bits=3)], ids=repr)
def test_what_steps_lost_comes_back_in_part_and_nothing_else_is_touched(kind: type[nn.Module], step: object) -> None:
    task = task_for(kind)
    small, _ = run(task, [step])
    before = photograph(small)
    repaired, record = ex.Repair()(small, task)
    new = samples(kind, seed=9)[0]
    assert far(repaired, task.model, new) < far(small, task.model, new)
    assert unchanged(small, before)
    assert record.changes
    for name, tensor in small.named_parameters():
        assert torch.equal(repaired.get_parameter(name) == 0, tensor == 0) or name.endswith("bias")
    for name, tensor in coded_tensors(small).items():
        assert torch.equal(coded_tensors(repaired)[name].codes, tensor.codes)


def test_a_thin_layer_is_compared_with_the_whole_one() -> None:
    task = task_for(ResidualCnn)
    small, _ = run(task, [ex.Factorize(rank=3, least="weights", layers="conv*"), ex.Fold()])
    wrong = copy.deepcopy(small)
    for path in ("conv1", "conv2"):
        wrong.get_submodule(path).get_submodule("up").weight.data *= 1.5
    repaired, record = ex.Repair()(wrong, task)
    assert far(repaired, task.model, samples(ResidualCnn)[0]) < far(wrong, task.model, samples(ResidualCnn)[0])
    assert record.changes


def test_a_folded_norm_is_compared_with_what_the_norm_gave() -> None:
    task = task_for(ResidualCnn)
    small, _ = run(task, [ex.Fold(), ex.Quantize(bits=3, per="tensor")])
    repaired, record = ex.Repair()(small, task)
    assert {change.path for change in record.changes} <= {"conv1", "conv2", "conv3", "fc"}
    new = samples(ResidualCnn, seed=9)[0]
    assert far(repaired, task.model, new) < 0.8 * far(small, task.model, new)
    folded, _ = run(task, [ex.Fold()])
    with pytest.raises(NothingChangedError, match="where the original's are"):
        ex.Repair()(folded, task)


def test_three_samples_change_next_to_nothing_where_they_show_nothing() -> None:
    task = task_for(Mlp)
    small, _ = run(task, [ex.Prune(0.5, scope="layer")])
    new = samples(Mlp, seed=9)[0]
    for seed in range(5):
        few = Task(task.model, calibration=[samples(Mlp, 3, seed)[0]])
        try:
            repaired, _ = ex.Repair()(small, few)
        except NothingChangedError:
            continue
        assert far(repaired, task.model, new) < 1.05 * far(small, task.model, new)


def test_repairing_twice_is_repairing_once() -> None:
    task = task_for(ResidualCnn)
    small, _ = run(task, [ex.Prune(0.6, scope="layer")])
    once, _ = ex.Repair(biases=False)(small, task)
    with pytest.raises(NothingChangedError, match="where the original's are"):
        ex.Repair(biases=False)(once, task)
    again, _ = ex.Repair(biases=False)(small, task)
    assert all(torch.equal(one, other) for one, other in zip(once.buffers(), again.buffers(), strict=True))


def test_a_coded_bias_stays_coded_and_gets_a_new_grid_where_its_own_does_not_reach() -> None:
    task = task_for(Mlp)
    small, _ = run(task, [ex.Quantize(bits=8, biases=8)])
    small.fc2.coded["bias"].scale.mul_(0.01)
    repaired, record = ex.Repair()(small, task)
    assert "bias" in repaired.fc2.coded
    assert "new grid of 8 bits" in next(change.what for change in record.changes if change.path == "fc2")
    new = samples(Mlp, seed=9)[0]
    assert far(repaired, task.model, new) < 0.1 * far(small, task.model, new)


def test_what_is_out_of_reach_is_named() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.lstm, self.never, self.fc = Own(6, 6), nn.LSTM(6, 6), nn.Linear(2, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(self.own(x))[0])

    torch.manual_seed(0)
    task = Task(Net().eval(), calibration=[torch.randn(40, 7, 6) + 1])
    small, _ = run(task, [ex.Prune(0.6, scope="layer", layers=["own", "lstm"])])
    _, record = ex.Repair()(small, task)
    reasons = {change.path: change.why for change in record.skipped}
    assert reasons["own.bias"].startswith("Own has a forward of its own")
    assert "gates" in reasons["lstm.bias_ih_l0"]
    assert reasons["never"] == "no calibration batch reaches it"


def test_layers_of_another_shape_are_left_alone_and_named() -> None:
    task = task_for(ResidualCnn)
    small, _ = run(task, [ex.PruneChannels(sparsity=0.5, scores="magnitude", layers="*")])
    _, record = ex.Repair()(small, task)
    assert any("channels and the original's" in change.why for change in record.skipped)
    assert [change.path for change in record.changes] == ["fc"]


def test_both_networks_get_the_very_same_batches_of_a_loader_that_shuffles() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.rows, self.passes = torch.cat(samples(Mlp)), 0

        def __iter__(self):
            self.passes += 1
            order = torch.randperm(96, generator=torch.Generator().manual_seed(self.passes))
            return iter(self.rows[order].split(32))

        def __len__(self) -> int:
            return 3

    task = Task(settled(Mlp), calibration=Shuffled())
    with pytest.raises(NothingChangedError, match="where the original's are"):
        ex.Repair()(copy.deepcopy(task.model), task)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_scale_is_too_small_or_too_large(scale: float) -> None:
    task = Task(settled(Mlp), calibration=[batch * scale for batch in samples(Mlp)])
    small, _ = run(task, [ex.Quantize(bits=3)])
    repaired, record = ex.Repair()(small, task)
    assert all(torch.isfinite(output(repaired, batch)).all() for batch in task.calibration)
    assert record.figures["output_error"] <= record.figures["output_error_before"]


def test_dead_channels_stay_finite() -> None:
    task = task_for(Mlp)
    small = copy.deepcopy(task.model)
    small.fc1.weight.data[:5] = 0
    repaired, _ = ex.Repair()(small, task)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in repaired.parameters())
    assert not repaired.fc1.weight[:5].any()
    new = samples(Mlp, seed=9)[0]
    assert far(repaired, task.model, new) < 1.05 * far(small, task.model, new)


def test_layers_that_were_scaled_on_purpose_are_no_fault_of_the_samples() -> None:
    task = task_for(Mlp)
    equal = copy.deepcopy(task.model)
    with torch.no_grad():
        equal.fc1.weight[:4] *= 8
        equal.fc1.bias[:4] *= 8
        equal.fc2.weight[:, :4] /= 8
    with pytest.raises(NothingChangedError, match=r"'fc1' spread .* where Equalize or others scaled them on purpose"):
        ex.Repair(layers="fc1")(equal, task)


def test_bad_input_is_refused() -> None:
    with pytest.raises(RangeError, match="leave nothing to repair"):
        ex.Repair(norms=False, biases=False)
    task = task_for(Mlp)
    with pytest.raises(LayerError, match="matches nothing"):
        ex.Repair(layers="conv*")(task.model, task)
    with pytest.raises(NothingChangedError, match="give more samples"):
        ex.Repair()(shifted(task.model), Task(task.model, calibration=[samples(Mlp)[0][:1]]))
    broken = copy.deepcopy(task.model)
    broken.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(TaskError, match="NaN"):
        ex.Repair()(broken, task)
