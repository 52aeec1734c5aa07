"""`compress(memory=)`: the peak of a process keeps below it, what cannot is refused at once, and results say what was done."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from tests.test_frugal import peaks
from torch import Tensor, nn

import enxuto as ex
from enxuto import allowance
from enxuto.allowance import InParts, allowed
from enxuto.artifact.digest import task_digest
from enxuto.errors import LimitError, RangeError
from enxuto.sizes import module_bytes, parse_bytes

PEAK = """
import json, torch
from torch import nn
import enxuto as ex
from enxuto.evaluation.memory import give_back_free_memory, peak_bytes, reset_peak

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
model = nn.Sequential(nn.Conv2d(3, 16, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
images = 2 * torch.randn(96, 3, 1, 1) + torch.randn(96, 3, 60, 60)  # or all have the same outputs
task = ex.Task(model, calibration=[images])
give_back_free_memory()
reset_peak()
before = peak_bytes()
result = ex.compress(task, steps=[ex.PruneChannels(sparsity=0.25), ex.Quantize(bits=8, activations=8), ex.Recover(epochs=1)],
                     memory=LIMIT)
print(json.dumps({"peak": peak_bytes() - before, "notes": "; ".join(result.evaluation.notes)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_job_keeps_within_the_memory_it_was_given(tmp_path):
    small, _ = ex.Quantize(bits=8)(nn.Linear(4, 3), ex.Task(nn.Linear(4, 3), calibration=[torch.randn(2, 4)]))
    ex.save(small, tmp_path / "small.nxt")  # so that the process finds compiled what is compiled once
    found = peaks(PEAK.replace("LIMIT", "'530 MB'"), tmp_path)
    assert found["peak"] <= 530e6
    assert re.search(
        r"kept within memory='530 MB': 30\.0 MB for training, calibration batches of 96 samples taken \d+ at a time",
        found["notes"],
    )


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3)))


def task(model: nn.Module | None = None, rows: int = 10) -> ex.Task:
    return ex.Task(model or Small().eval(), calibration=[torch.randn(rows, 1, 16, 16), torch.randn(3, 1, 16, 16)])


def test_the_least_that_is_named_is_enough(monkeypatch):
    monkeypatch.setattr(allowance, "LIBRARIES_BYTES", 1000)
    with pytest.raises(LimitError, match=r"memory='2 kB' is asked for, but the weights .* allow at least that") as refused:
        allowed(task(), "2 kB", [])
    least = re.search(r"needs ([\d.]+ kB) with one sample", str(refused.value))
    assert least is not None
    made, said = allowed(task(), round(parse_bytes(least[1]) * 1.01), [])
    assert [len(batch) for batch in made.calibration] == [1] * 13
    assert "batches of 10 samples taken 1 at a time" in said


def test_parts_are_the_same_samples_and_enough_memory_leaves_batches_whole(monkeypatch):
    monkeypatch.setattr(allowance, "LIBRARIES_BYTES", 1000)
    given = task()
    enough = 1000 + allowance.COPIES * module_bytes(given.model) + allowance._forward_bytes(given.model, given.sample, 10)
    made, _ = allowed(given, enough - 1, [])
    assert max(map(len, made.calibration)) < 10
    assert len(made.calibration) == len(list(made.calibration))
    assert torch.equal(torch.cat(list(made.calibration)), torch.cat(list(given.calibration)))
    whole, _ = allowed(given, enough, [])
    assert whole.calibration is given.calibration


def test_training_has_what_the_libraries_and_the_weights_leave(monkeypatch):
    monkeypatch.setattr(allowance, "LIBRARIES_BYTES", 1000)
    given = task()
    made, _ = allowed(given, "10 MB", None)
    assert made.memory == 10_000_000 - 1000 - sum(p.numel() * 4 for p in given.model.parameters())
    assert task_digest(made) != task_digest(given)
    with pytest.raises(LimitError, match="training step of one sample"):
        allowed(given, "10 MB", [ex.Recover(memory="4 kB")])  # its own counts, and is asked before any step runs


def test_a_network_whose_samples_are_not_apart_is_refused(monkeypatch):
    class Together(Small):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images - images.mean(0))

    monkeypatch.setattr(allowance, "LIBRARIES_BYTES", 1000)
    least = 1000 + allowance.COPIES * module_bytes(Together()) + allowance._forward_bytes(Together().eval(), task().sample, 1)
    with pytest.raises(LimitError, match="for a sample alone are not those beside others"):
        allowed(task(Together().eval()), least, [])


def test_a_network_that_must_really_run_says_so_once(caplog):
    class Moody(Small):
        def forward(self, images: Tensor) -> Tensor:
            y = super().forward(images)
            return y if float(y.sum()) > 0 else -y

    for times in (1, 2):
        allowed(task(Moody().eval()), "1 GB", None)
        assert len([record for record in caplog.records if "measured in a real run" in record.message]) == times


def test_a_memory_that_is_no_size_is_refused_by_the_task():
    with pytest.raises(RangeError, match="memory='much' is not understood"):
        ex.Task(Small().eval(), calibration=[torch.randn(2, 1, 16, 16)], memory="much")


def test_batches_that_are_small_enough_pass_as_they_are():
    batch = torch.randn(4, 2)
    assert [part is batch for part in InParts([batch], 4)] == [True]
