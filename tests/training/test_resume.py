"""A training that is killed goes on to the same bytes, wherever it was and whatever it remembers."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import enxuto as ex
from enxuto import data
from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.recipe import run
from enxuto.training import state
from enxuto.training.state import State


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4))


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(80, 1, 6, 6, generator=generator)
    return x, torch.randint(0, 4, (80,), generator=generator)


def task_of(train: Any = None) -> ex.Task:
    x, y = samples()
    torch.manual_seed(0)
    return ex.Task(
        Net(),
        calibration=[x[:32]],
        train=data.batches(x, y, batch_size=16, shift=0) if train is None else train,
        loss=nn.functional.cross_entropy,
        evaluate=data.accuracy(x, y),
    )


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Adds noise by all the generators that a data set may use."""

    def __init__(self) -> None:
        self.x, self.y = samples()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(1) + float(np.random.rand()) + random.random()
        return self.x[place] + 0.1 * noise, self.y[place]


def shuffled(*, own: bool = False, noisy: bool = False, workers: int = 0) -> DataLoader[Any]:
    source: Any = Noisy() if noisy else list(zip(*samples(), strict=True))
    generator = torch.Generator().manual_seed(7) if own else None
    return DataLoader(source, batch_size=16, shuffle=True, generator=generator, num_workers=workers)


FINE = ex.Quantize(bits=8, per="tensor", fit="absmax")
TRAININGS: dict[str, tuple[list[ex.Step], dict[str, Any], Callable[[], Any] | None]] = {
    "plain": ([], {}, None),
    "shuffled": ([], {"accumulate": 2, "optimizer": "SGD", "options": {"momentum": 0.9}}, shuffled),
    "own generator, noise": ([], {"teacher": 0.0, "schedule": "one-cycle"}, lambda: shuffled(own=True, noisy=True)),
    "in steps": ([], {"during": [ex.Prune(0.6), ex.Share(3)], "average": 0.9, "keep": "best"}, shuffled),
    "codes": ([ex.Prune(0.5), ex.Quantize(4)], {"patience": 3, "every": 0.4}, shuffled),
    "a rate": ([FINE], {"rate": 1e-5, "temperature": 1.0}, shuffled),
    "bytes": ([FINE], {"rate": "700 B", "temperature": 1.0}, None),
    "movement": ([], {"during": [ex.Prune(0.6, scores="movement")], "optimizer": "RMSprop"}, shuffled),
    "regrowth": ([ex.Prune(0.6)], {"during": [ex.Regrow()], "tight": 0}, shuffled),
    "gates": ([], {"terms": [ex.terms.L0(0.5), ex.terms.GroupLasso(1e-3)]}, shuffled),
    "thresholds": ([], {"terms": [ex.terms.SoftThreshold(), ex.terms.Slimming()], "average": 0.9}, shuffled),
    "terms": ([], {"terms": [ex.terms.Features("1"), ex.terms.Contrast("1"), ex.terms.Relations("3")]}, shuffled),
}


class Killed(KeyboardInterrupt):
    """What a kill looks like from within."""


def file_of(folder: Path, steps: list[ex.Step], train: Any) -> bytes:
    """The bytes of what a recipe gives, whose states are in the folder."""
    folder.mkdir(exist_ok=True)
    random.seed(5)
    np.random.seed(5)
    task = task_of(train)
    model, _ = run(task, steps, checkpoints=FolderCheckpoints(folder))
    ex.save(model, folder / "small.nxt", original=task.model)
    return (folder / "small.nxt").read_bytes()


def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A state after each update; the process dies after so many of them."""
    write, left = State.write_, [after]

    def written(self: State, what: Any) -> None:
        write(self, what)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(state, "EVERY_S", 0.0)
    monkeypatch.setattr(state, "SHARE", 0.0)
    monkeypatch.setattr(State, "write_", written)


def killed(monkeypatch: pytest.MonkeyPatch, after: int, folder: Path, steps: list[ex.Step], train: Any) -> None:
    """The same as `file_of`, until a kill."""
    with monkeypatch.context() as patched:
        dying(patched, after)
        with pytest.raises(Killed):
            file_of(folder, steps, train)


@pytest.mark.parametrize("name", TRAININGS)
def test_what_was_killed_goes_on_to_the_same_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, arguments, train = TRAININGS[name]
    steps = [*before, ex.Recover(**({"epochs": 4, "learning_rate": 1e-2} | arguments))]
    whole = file_of(tmp_path / "whole", steps, train and train())
    for after in (3, 4):  # killed, going on, and killed again
        killed(monkeypatch, after, tmp_path / "killed", steps, train and train())
    assert list((tmp_path / "killed").rglob("training-*.pt"))
    assert file_of(tmp_path / "killed", steps, train and train()) == whole
    assert not list((tmp_path / "killed").rglob("training-*")), "what is over leaves no state"


SCRIPT = """
import os, signal, sys
from pathlib import Path
import enxuto as ex
from enxuto.training import loop, state
sys.path.insert(0, {here!r})
import test_resume
state.EVERY_S = state.SHARE = 0.0
learn, left = loop.Run.learn_, [13]
def counted(self, batch):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    learn(self, batch)
loop.Run.learn_ = counted
test_resume.file_of(Path(sys.argv[1]), test_resume.steps_of_all(), test_resume.shuffled())
"""


def steps_of_all() -> list[ex.Step]:
    return [ex.Recover(epochs=4, learning_rate=1e-2, during=[ex.Prune(0.6), ex.Quantize(4)], average=0.9, keep="best", every=0.6)]


def test_a_process_that_is_killed_in_the_middle_leaves_what_another_goes_on_from(tmp_path: Path) -> None:
    script = SCRIPT.format(here=str(Path(__file__).parent))
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed")], check=False, env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL
    (kept,) = (tmp_path / "killed").rglob("training-*.pt")
    assert torch.load(kept, weights_only=False)["counts"]["done"] == 12
    assert file_of(tmp_path / "killed", steps_of_all(), shuffled()) == file_of(tmp_path / "whole", steps_of_all(), shuffled())


def test_a_damaged_state_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    steps: list[ex.Step] = [ex.Recover(epochs=2, teacher=0.0)]
    whole = file_of(tmp_path / "whole", steps, None)
    for damage in (lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: raw[:900] + bytes(40) + raw[940:]):
        killed(monkeypatch, 3, tmp_path / "killed", steps, None)
        (kept,) = (tmp_path / "killed").rglob("training-*.pt")
        kept.write_bytes(damage(kept.read_bytes()))
        assert file_of(tmp_path / "killed", steps, None) == whole
        for path in [*(tmp_path / "killed").glob("*.json")]:
            path.unlink()


def test_a_full_disk_is_told_of_once_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[ex.Step] = [ex.Recover(epochs=2, teacher=0.0)]
    whole = file_of(tmp_path / "whole", steps, None)
    monkeypatch.setattr(state, "EVERY_S", 0.0)
    monkeypatch.setattr(state, "SHARE", 0.0)
    save, calls = torch.save, [0]

    def full(what: Any, path: Path) -> None:
        calls[0] += 1
        if calls[0] == 2:
            assert [file for file in path.parent.iterdir() if file.suffix == ".pt"], "the earlier state stays"
        if calls[0] > 1:
            path.write_bytes(b"half")
            raise (OSError(28, "No space left on device") if calls[0] % 2 else RuntimeError("file write failed"))
        save(what, path)

    monkeypatch.setattr(torch, "save", full)
    with caplog.at_level(logging.WARNING):
        assert file_of(tmp_path / "full", steps, None) == whole
    assert calls[0] > 5
    assert len([each for each in caplog.records if "its state was not written" in each.message]) == 1
    assert not list((tmp_path / "full").rglob("*.part"))


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "EVERY_S", 0.0)
    monkeypatch.setattr(State, "write_", lambda *_: pytest.fail("a state was written"))
    task = task_of()
    ex.Recover()(task.model, task)


def test_two_trainings_of_one_step_do_not_take_each_other_for_the_same(tmp_path: Path) -> None:
    first, second = Net(), Net()
    with state.resuming(tmp_path, first):
        assert state.place_of(first, "one") != state.place_of(first, "two")
        assert state.place_of(second, "one") is None
    assert state.place_of(first, "one") is None


@pytest.fixture(autouse=True)
def _chance() -> Iterator[None]:
    now, numpy = random.getstate(), np.random.get_state()
    yield
    random.setstate(now)
    np.random.set_state(numpy)
