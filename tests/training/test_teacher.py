"""The teacher is asked once for each sample that comes again, and each time for what may not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto.training import teacher as module
from enxuto.training.teacher import Teacher
from toys import Mlp, seeded

X = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))


class Counted(nn.Module):
    """Says how many samples it was asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = inner, 0

    def forward(self, *given, **named):
        first = next(iter((*given, *named.values())))
        self.asked += len(first)
        return self.inner(*given, **named)


def epoch(order: torch.Tensor) -> list[torch.Tensor]:
    return list(X[order].split(16))


def test_what_comes_again_is_read_in_any_order_and_the_same() -> None:
    model = Counted(seeded(Mlp).eval())
    teacher = Teacher(model, epochs=3)
    for number in range(3):
        for batch in epoch(torch.randperm(40)):
            torch.testing.assert_close(teacher(batch, number / 3)["0"], model.inner(batch).detach())
    assert model.asked == 40 + 8  # once each, and half of the first batch alone
    assert torch.equal(teacher(X[:5])["0"], teacher(X[:7])["0"][:5])


@pytest.mark.parametrize("inner", [nn.BatchNorm1d(12, track_running_stats=False), nn.Flatten(0), nn.Linear(12, 3).to("meta")])
def test_what_hangs_on_the_batch_is_asked_each_time(inner: nn.Module) -> None:
    model = Counted(inner)
    device = next((each.device for each in inner.parameters()), torch.device("cpu"))
    teacher = Teacher(model, epochs=3)
    batch = X[:16].to(device)
    for number in range(4):
        before = model.asked
        teacher(batch, number / 4)
        assert model.asked - before == 16 + 8 * (number == 0 and device.type == "cpu")


def test_samples_that_are_new_each_time_are_no_longer_looked_for() -> None:
    model = Counted(seeded(Mlp).eval())
    teacher = Teacher(model, epochs=10)
    for number in range(40):
        teacher(X + number, number / 40)
    assert teacher.kept is not None
    assert len(teacher.kept.places) == 8 * 40  # two of ten epochs
    assert Teacher(model, epochs=1).until == 0


def test_what_a_batch_says_beside_its_samples_tells_them_apart() -> None:
    class Either(nn.Module):
        def forward(self, x, turned):
            return -x if turned else x

    teacher = Teacher(Either(), epochs=2)
    for turned in (False, True, False):
        assert torch.equal(teacher({"x": X, "turned": turned})["0"], -X if turned else X)


def test_numbers_of_every_kind_are_kept() -> None:
    class Every(nn.Module):
        def forward(self, x, nothing):
            return {"complex": torch.fft.rfft(x).conj(), "bool": x > 0, "short": x[:, 0].bfloat16(), "whole": x[:, :3].long()}

    teacher, given = Teacher(Every(), epochs=2), (X, X[:, :0])
    first, again = teacher(given), teacher(given)
    assert teacher.until == float("inf"), "the second were read"
    for name, tensor in first.items():
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype


@pytest.mark.parametrize("limit", ["bytes", "disk"])
def test_what_has_no_room_is_asked_each_time(limit: str, monkeypatch) -> None:
    model = Counted(seeded(Mlp).eval())
    teacher = Teacher(model, epochs=2)
    teacher(X[:16])
    assert teacher.kept is not None
    if limit == "bytes":
        monkeypatch.setattr(module, "MOST_BYTES", 16 * 4 * model.inner(X).shape[1])
    else:

        class Full:
            def __init__(self, file):
                self.file = file

            def write(self, data: bytes) -> None:
                self.file.write(data[:5])
                raise OSError(errno.ENOSPC, "No space left on device")

            def __getattr__(self, name):
                return getattr(self.file, name)

        teacher.kept.file = Full(teacher.kept.file)
    for batch in (X[:16], X[16:], X[:16], X[16:]):
        torch.testing.assert_close(teacher(batch)["0"], model.inner(batch).detach())
    assert model.asked == 24 + 24 + 24


def test_a_training_asks_once_for_each_sample(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        Teacher, "_asked", lambda self, inputs, real=Teacher._asked: (asked.append(len(inputs)), real(self, inputs))[1]
    )
    model = seeded(Mlp).eval()
    task = ex.Task(
        model, calibration=[X], train=[(x, torch.zeros(len(x), dtype=torch.long)) for x in X.split(8)], loss=nn.CrossEntropyLoss()
    )
    small, _ = ex.Recover(epochs=4)(model, task)
    assert sum(asked) == 40 + 4
    again, _ = ex.Recover(epochs=4)(model, task)
    assert all(map(torch.equal, small.parameters(), again.parameters()))


def test_outputs_of_each_sample_beside_each_of_its_batch_are_taught() -> None:
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 8)

        def forward(self, x):
            found = self.fc(x)
            return found @ found.T

    model = Alike().eval()
    batches = list(X.split(16))  # the last has eight
    task = ex.Task(model, calibration=batches)
    record = ex.Recover(epochs=3)(ex.Prune(0.5)(model, task)[0], task)[1]
    assert record.figures["loss_last"] < record.figures["loss_first"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_full_disk_is_not_written_to_again() -> None:
    kept = module._Kept(Path("/dev/full"))
    kept.write([b"0" * module.KEY, b"1" * module.KEY], {"0": torch.ones(2, 3)}, 2)
    assert kept.full
    assert kept.file is not None
    kept.file.close()  # raises where something waits in a buffer
    assert kept.read([b"0" * module.KEY]) is None
