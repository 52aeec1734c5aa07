"""Odd models, modes and optimizers: what is foreseen is what runs, or it is said what cannot be, and nothing is touched."""

from __future__ import annotations

import copy
import inspect
import io
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from enxuto import memory
from enxuto.errors import ShapeError, TaskError
from enxuto.memory.profile import BACKWARD, FORWARD, OPTIMIZER, WEIGHTS

X, Y = torch.randn(8, 64), torch.randint(10, (8,))


class Idle(nn.Module):
    """Its second layer gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(64, 10), nn.Linear(500, 500)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Plain(nn.Module):
    """Holds tensors in plain attributes and writes to them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.table = torch.ones(1000, 10)
        self.sums = [torch.zeros(10)]

    def forward(self, x: Tensor) -> Tensor:
        self.sums[0] += 1
        self.table.mul_(2)
        return self.fc(x) + self.table[: len(x)] + self.sums[0]


class Interrupted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(64, 10), nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        F.dropout(self.norm(self.fc(x)))
        raise KeyboardInterrupt


def test_parameters_without_gradients_have_no_states() -> None:
    step = {"loss": F.cross_entropy, "optimizer": torch.optim.Adam}
    foreseen, found = memory.predict(Idle(), (X, Y), **step), memory.record(Idle(), (X, Y), **step)
    assert foreseen.timeline[OPTIMIZER].max() == found.timeline[OPTIMIZER].max() == 2 * 4 * 650 + 2 * 4
    assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)


def test_tensors_in_plain_attributes_are_weights_and_stay_what_they_are() -> None:
    model = Plain()
    foreseen = memory.predict(model, (X, Y), loss=F.cross_entropy)
    found = memory.record(model, (X, Y), loss=F.cross_entropy)
    assert foreseen.predicted
    assert foreseen.by_category[WEIGHTS] == found.by_category[WEIGHTS] == 4 * (650 + 10_000 + 10)
    assert float(model.sums[0].sum()) == 0
    assert bool((model.table == 1).all())


@pytest.mark.parametrize("question", [memory.predict, memory.record])
def test_an_interruption_leaves_everything_as_it_was(question) -> None:
    model = Interrupted()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        question(model, (X, Y), loss=F.cross_entropy, optimizer=torch.optim.Adam)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert _get_current_dispatch_mode() is None


class Keeping(nn.Module):
    """A hook keeps what the first layer gives until the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1)
        self.kept: dict[str, Tensor] = {}
        self.first.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, given: object, output: Tensor) -> None:
        self.kept["first"] = output.detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("trained", [False, True])
def test_what_a_hook_keeps_is_of_the_step_before_whatever_was_called_last(trained: bool) -> None:
    images, wanted = torch.randn(64, 1, 28, 28), torch.randn(64, 8, 28, 28)
    step = {"loss": F.mse_loss, "optimizer": torch.optim.Adam} if trained else {}
    for size in (16, 64):
        batch = (images[:size], wanted[:size]) if trained else images[:size]
        found = set()
        for called in (0, 4, 64):
            model = Keeping()
            if called:
                model(images[:called])
            found |= {ask(model, batch, **step).peak_bytes for ask in (memory.predict, memory.record, memory.record)}
        assert len(found) == 1


def test_a_hook_that_keeps_something_is_measured_without_a_word_of_torch() -> None:
    script = f"import torch\nfrom torch import Tensor, nn\nfrom enxuto import memory\n{inspect.getsource(Keeping)}"
    script += "model, x = Keeping(), torch.randn(16, 1, 28, 28)\nmodel(x)\nmemory.record(model, x)\ndel model\n"
    script += "model = Keeping()\nmodel(x)\nmemory.record(model, x)\n"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout + told.stderr == ""


def test_the_mode_of_the_caller_does_not_matter() -> None:
    model = nn.Linear(64, 10)
    usual = memory.predict(model, (X, Y), loss=F.cross_entropy)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert memory.predict(model, (X, Y), loss=F.cross_entropy) == usual
            assert memory.record(model, (X, Y), loss=F.cross_entropy).peak_bytes == usual.peak_bytes


def test_sparse_gradients_are_followed() -> None:
    model = nn.Sequential(nn.Embedding(1000, 8, sparse=True), nn.Flatten(), nn.Linear(32, 10))
    batch = torch.randint(1000, (8, 4)), Y
    step = {"loss": F.cross_entropy, "optimizer": torch.optim.SGD}
    foreseen, found = memory.predict(model, batch, **step), memory.record(model, batch, **step)
    assert foreseen.predicted
    assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)


@pytest.mark.filterwarnings("ignore")  # torch's own: scripting is deprecated
def test_a_scripted_model_is_measured_or_foreseen() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(64, 10), nn.ReLU()))
    assert memory.predict(model, X).peak_bytes == memory.record(model, X).peak_bytes


def test_what_cannot_be_foreseen_is_refused_with_words() -> None:
    model = nn.Linear(64, 10)
    with pytest.raises(TaskError, match="LBFGS runs the model in its step"):
        memory.predict(model, (X, Y), loss=F.cross_entropy, optimizer=torch.optim.LBFGS)
    with pytest.raises(TaskError, match="model is str"):
        memory.predict("net", X)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="model is function"):
        memory.record(F.relu, X)  # type: ignore[arg-type]
    for size in ("8", 8.5, True):
        with pytest.raises(ShapeError, match="batch_size="):
            memory.predict(model, X, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="none trains"):
        memory.predict(model.requires_grad_(False), (X, Y), loss=F.cross_entropy, optimizer=torch.optim.SGD)


def test_a_profiler_that_runs_already_is_left_alone() -> None:
    with torch.autograd.profiler.profile() as theirs:
        with pytest.raises(TaskError, match="profiler runs already"):
            memory.record(nn.Linear(64, 10), X)
        torch.ones(3).add(1)
    assert any("add" in event.name for event in theirs.function_events)


def test_a_step_with_a_closure_is_watched_by_phase_and_its_states_are_the_optimizers() -> None:
    model = nn.Linear(64, 10)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    with memory.watch(model, optimizer, live=False) as seen:
        for _ in range(3):
            optimizer.step(closure)
    found = seen.profile()
    assert {FORWARD, BACKWARD} <= {moment.phase for moment in found.moments}
    assert found.timeline[OPTIMIZER].max() >= 4 * 4 * 650  # directions and steps are lists of tensors


def test_a_checkpointed_model_can_be_pickled() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 10))
    memory.checkpoint_(model, ["0"])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert type(again[0]) is type(model[0])
    assert torch.equal(again(X), model(X))
