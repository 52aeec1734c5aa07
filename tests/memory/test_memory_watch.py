"""A watch sees what predict foresees, step after step, in the memory of one step, and leaves nothing behind."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from enxuto import memory
from enxuto.errors import TaskError
from enxuto.memory import live
from enxuto.memory.profile import ACTIVATIONS, INPUTS, OPTIMIZER


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def batches(count: int, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        yield torch.randn(size, 1, 8, 8), torch.randint(5, (size,))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    del loss
    optimizer.step()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_that_is_watched_is_the_step_that_is_predicted() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with memory.watch(model, optimizer) as seen:
        for x, y in batches(4):
            train(model, optimizer, x, y)
            del x, y
    foreseen = memory.predict(model, next(batches(1)), loss=F.cross_entropy, optimizer=torch.optim.Adam)
    assert seen.steps == 4
    assert seen.peak_bytes == foreseen.peak_bytes
    found = seen.profile()
    assert found.peak_bytes == foreseen.peak_bytes
    assert found.by_category == foreseen.by_category
    assert found.saved_bytes == foreseen.saved_bytes
    assert not found.predicted
    assert {moment.phase for moment in found.moments} == {"forward", "backward", "update"}


def test_what_is_kept_does_not_grow_with_the_steps() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    sizes = []
    with memory.watch(model, optimizer) as seen:
        for x, y in batches(8):
            train(model, optimizer, x, y)
            tracker = seen.tracker
            sizes.append((len(tracker.lives), len(tracker.moments), len(tracker._made_by), len(seen.profile().blocks)))
    assert len(set(sizes[2:])) == 1, sizes


def test_two_optimizers_are_one_step_and_both_states_are_known() -> None:
    model = Net()
    halves = list(model.parameters())[:2], list(model.parameters())[2:]
    apart = [torch.optim.Adam(half) for half in halves]
    whole = torch.optim.Adam(model.parameters())
    found = []
    for optimizers in (apart, [whole]):
        with memory.watch(model, *optimizers) as seen:
            for x, y in batches(3):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                for optimizer in optimizers:
                    optimizer.step()
        assert seen.steps == 3
        found.append(seen.profile().by_category)
    assert found[0] == found[1]


def test_gradients_over_several_batches_are_one_step() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters())
    with memory.watch(model, optimizer) as seen:
        for number, (x, y) in enumerate(batches(6), 1):
            F.cross_entropy(model(x), y).backward()
            if number % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert seen.steps == 2
    assert [moment.phase for moment in seen.profile().moments].count("update") > 0
    convolutions = [moment for moment in seen.profile().moments if moment.operator.startswith("aten.convolution.")]
    assert len(convolutions) == 3


def test_an_evaluation_between_steps_counts_for_the_peak_alone() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters())
    with memory.watch(model, optimizer) as seen:
        for x, y in batches(2):
            train(model, optimizer, x, y)
        before = seen.peak_bytes
        with torch.no_grad():
            for x, _ in batches(3, size=512):
                model(x)
        assert len(seen.tracker.moments) < 20, "evaluations do not pile up"
    assert seen.steps == 2
    assert seen.peak_bytes > 2 * before
    assert seen.profile().peak_bytes == before
    assert seen.fullest is not None
    assert seen.fullest.peak_bytes == seen.peak_bytes


def test_without_an_optimizer_each_call_is_a_step() -> None:
    model = Net()
    with torch.no_grad(), memory.watch(model) as seen:
        for x, _ in batches(3):
            model(x)
    assert seen.steps == 3
    assert {moment.phase for moment in seen.profile().moments} == {"forward"}


def test_batches_and_targets_are_inputs_and_states_the_optimizers() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with memory.watch(model, optimizer) as seen:
        for x, y in batches(2):
            train(model, optimizer, x, y)
    found = seen.profile()
    assert found.by_category[INPUTS] == 16 * 64 * 4 + 16 * 8
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert found.timeline[OPTIMIZER].max() == trained * 8 + 4 * len(list(model.parameters()))
    assert found.timeline[ACTIVATIONS].max() > 16 * 4 * 36 * 4


def test_an_error_in_the_loop_passes_through_and_the_hooks_are_gone() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters())
    fault = ZeroDivisionError("of the loop")
    seen = memory.watch(model, optimizer)

    def loop() -> None:
        with seen:
            x, y = next(batches(1))
            F.cross_entropy(model(x), y).backward()
            raise fault

    with pytest.raises(ZeroDivisionError) as caught:
        loop()
    assert caught.value is fault
    assert _get_current_dispatch_mode() is None
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert seen.steps == 0
    assert seen.profile().saved_bytes, "what ran until then can be seen"


def test_the_training_is_the_same_with_and_without() -> None:
    results = []
    for watched in (False, True):
        torch.manual_seed(3)
        model = Net()
        optimizer = torch.optim.Adam(model.parameters())
        if watched:
            with memory.watch(model, optimizer):
                for x, y in batches(3):
                    train(model, optimizer, x, y)
        else:
            for x, y in batches(3):
                train(model, optimizer, x, y)
        results.append(model.fc.weight.detach().clone())
    assert torch.equal(*results)


def test_a_terminal_sees_the_categories_and_the_place_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with memory.watch(model, optimizer) as seen:
        for x, y in batches(2):
            train(model, optimizer, x, y)
    shown = screen.getvalue()
    for words in ("weights", "optimizer states", "activations", "all tensors", "peak:"):
        assert words in shown
    assert seen.fullest is not None
    assert live.place(seen.fullest).split(",")[0] in ("forward", "backward", "update")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]) -> None:
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    model = Net()
    with memory.watch(model, live=stream is io.StringIO):
        model(torch.randn(2, 1, 8, 8))
    assert screen.getvalue() == ""


def test_what_is_no_model_or_optimizer_is_refused() -> None:
    with pytest.raises(TaskError, match="model is str"):
        memory.watch("net")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="optimizer is type"):
        memory.watch(Net(), torch.optim.Adam)  # type: ignore[arg-type]


def test_nothing_ran_is_said() -> None:
    with memory.watch(Net()) as seen:
        pass
    with pytest.raises(TaskError, match="nothing ran"):
        seen.profile()
