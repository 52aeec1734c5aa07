"""Faults of pruned training that other tools have: zeros that leak, norms that see two distributions, teachers that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.sites import sites
from toys import Mlp, ResidualCnn, inputs, seeded

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW, decay": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
    "RMSprop, momentum": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("gradual", [False, True])
def test_zeros_do_not_leak_after_any_update(kind: str, gradual: bool) -> None:
    """Momentum from the time before a weight went is what moves it in other tools; decay what brings zeros near and not there."""
    x, y, steps = inputs(Mlp), torch.arange(8) % 5, [ex.Prune(0.8)]
    model = ex.prepare(ex.Task(seeded(Mlp), calibration=[x]), steps, gradual=gradual)
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = ex.Schedule(model, steps, batches=10, end=0.6)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        for weight in sites(model):
            out = torch.zeros_like(weight.read(), dtype=torch.bool) if weight.tensor.keep is None else ~weight.tensor.keep  # type: ignore
            assert not weight.tensor().masked_select(out).any()  # type: ignore[operator]
            shipped = next(each for each in sites(ex.convert(model)) if each.key == weight.key)
            assert not shipped.read().masked_select(out).any()
        if gradual:
            schedule.step()
    total = sum(weight.read().numel() for weight in sites(model))
    assert sum(int((weight.read() == 0).sum()) for weight in sites(ex.convert(model))) == round(0.8 * total)


class Counted(nn.BatchNorm2d):
    """A batch norm that keeps what it was given while it trains."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach())
        return super().forward(x)


class Net(nn.Module):
    """A convolution, a norm that counts, a head with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.head = nn.Conv2d(3, 4, 3), Counted(4), nn.Dropout(0.5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def task_of_net(batches: int = 6) -> ex.Task:
    torch.manual_seed(0)
    pairs = [(torch.randn(8, 3, 6, 6), torch.arange(8) % 5) for _ in range(batches)]
    return ex.Task(Net().train(), calibration=[pairs[0][0]], train=pairs, loss=F.cross_entropy)


@pytest.mark.parametrize("during", [(), (ex.Prune(0.6), ex.Share(3)), (ex.Regrow(0.6, updates=3),)], ids=str)
def test_a_batch_norm_sees_the_students_batches_alone_each_once(during: tuple[ex.Step, ...]) -> None:
    """Neither the teacher's passes, nor those of a look at something, go into its statistics."""
    task = task_of_net()
    before = {name: each.clone() for name, each in task.model.state_dict().items()}
    student, _ = ex.Recover(epochs=1, during=during, learning_rate=1e-2)(task.model, task)
    norm = student.norm
    assert int(norm.num_batches_tracked) == len(norm.seen) == 6  # type: ignore[arg-type]
    mean, var = torch.zeros(4), torch.ones(4)
    for x in norm.seen:  # type: ignore[union-attr]
        mean = mean * 0.9 + 0.1 * x.mean((0, 2, 3))
        var = var * 0.9 + 0.1 * x.var((0, 2, 3))
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, var, atol=1e-6)  # type: ignore[arg-type]
    assert all(torch.equal(each, before[name]) for name, each in task.model.state_dict().items()), "the original is as it was"


def test_the_teacher_does_not_train_though_the_original_was_left_in_training_mode() -> None:
    """With dropout and batch statistics its answers would be noise; a student that is the original has nothing to learn."""
    task = task_of_net()
    assert task.model.training
    modes: list[bool] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: modes.append(module.training) if isinstance(module, Net) else None
    )
    try:
        student, _ = ex.Recover(epochs=1, teacher=1.0)(task.model, task)
    finally:
        handle.remove()
    assert sum(modes) == 6, "the student's passes train, those of the teacher do not"
    assert len(modes) > 6
    assert student.training == task.model.training
    assert int(task.model.norm.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_a_schedule_reaches_its_end_whatever_the_batches_are() -> None:
    """Tools that count epochs, or steps that were written down, prune to the end only where data are as long as they thought."""
    for batches, epochs in ((1, 1), (3, 1), (2, 2.5), (7, 0.4)):
        task = task_of_net(batches)
        student, record = ex.Recover(epochs=epochs, during=[ex.Prune(0.75)])(task.model, task)
        total = sum(weight.read().numel() for weight in sites(student))
        assert sum(int((weight.read() == 0).sum()) for weight in sites(student)) == round(0.75 * total)
        assert record.figures["batches"] == max(1, round(batches * epochs))


def test_norms_of_a_prepared_network_follow_the_pruned_one() -> None:
    x = inputs(ResidualCnn)
    model = ex.prepare(ex.Task(seeded(ResidualCnn), calibration=[x]), [ex.Prune(0.8)])
    before = {name: each.clone() for name, each in model.named_buffers() if name.endswith("running_mean")}
    ex.convert(model)
    for name, each in model.named_buffers():
        assert name not in before or torch.equal(each, before[name]), "neither preparing nor converting runs a batch through"
    model(x)
    assert any(not torch.equal(each, before[name]) for name, each in model.named_buffers() if name in before)
