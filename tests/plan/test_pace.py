"""How long training takes: what happens once is not taken for work, and a wrong belief is mended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from torch import nn

import enxuto as ex
from enxuto.plan import pace
from enxuto.records import Record
from enxuto.task import Task
from toys import Mlp, task_of

BATCHES = 100


@dataclass
class Clocked:
    """A Recover whose calls take what is said: starting, and a time for each batch."""

    epochs: float = 1.0
    starts: Sequence[float] = (0.0,)
    batch_s: float = 0.01
    called = 0

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        batches = max(1, round(self.epochs * BATCHES))
        start = self.starts[min(Clocked.called, len(self.starts) - 1)]
        Clocked.called += 1
        return model, Record("Recover()", (), (), {"batches": float(batches)}, start + batches * self.batch_s)


@pytest.mark.parametrize(
    ("starts", "batch_s", "epoch_s"),
    [
        ([6.7, 0.0], 0.01, 1.0),  # an import in the first batch: 600 s were believed
        ([0.5], 0.01, 1.0),  # workers that start with every training
        ([0.0], 30.0, 3000.0),  # really slow
        ([40.0, 0.0], 30.0, 3000.0),
        ([0.0, 0.3, 0.0], 0.01, 1.0),  # a busy moment in the second: never less than nothing
    ],
)
def test_an_epoch_takes_what_its_batches_take(
    monkeypatch: pytest.MonkeyPatch, starts: list[float], batch_s: float, epoch_s: float
) -> None:
    Clocked.called = 0
    monkeypatch.setattr(pace, "Recover", lambda epochs: Clocked(epochs, starts, batch_s))
    monkeypatch.setattr(pace, "batches_of", lambda task: BATCHES)
    assert pace.seconds_per_epoch(task_of(Mlp)) == pytest.approx(epoch_s)


def test_what_is_imported_late_is_there_before_the_clock_runs() -> None:
    code = "import sys; from enxuto.plan import pace; pace.ready(); print(all(name in sys.modules for name in pace.LATE))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_pace_is_that_of_the_last_training() -> None:
    task = task_of(Mlp)
    recipe = (ex.Recover(epochs=1), ex.Share(), ex.Recover(epochs=3))
    _, records = ex.run(task, recipe)
    expected = records[-1].seconds / records[-1].figures["batches"] * len(list(task.calibration))
    assert pace.seconds_seen(task, recipe, records) == pytest.approx(expected)
    assert pace.seconds_seen(task, recipe[1:2], records[1:2]) is None
