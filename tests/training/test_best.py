"""The best state is kept, a training that finds nothing better ends, and one that breaks falls back to what was good."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import RangeError, TaskError
from enxuto.layers import Rehearsal
from enxuto.progress import listening
from enxuto.sites import sites
from enxuto.training.snapshot import Snapshot


def labelled(batches: int = 8, evaluate: Callable[[nn.Module], Any] | None = None) -> ex.Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    pairs = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(batches)]
    return ex.Task(model, calibration=[pairs[0][0]], train=pairs, loss=nn.functional.cross_entropy, evaluate=evaluate)


def recovered(task: ex.Task, **arguments: Any) -> tuple[nn.Module, ex.records.Record]:
    return ex.Recover(teacher=0.0, learning_rate=1e-2, **arguments)(task.model, task)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in model.state_dict().values()])


class Scores:
    """Says of each model in turn what it is told to, and remembers the models."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen, self.models = scores, 0, list[nn.Module]()

    def __call__(self, model: nn.Module) -> float:
        assert not any(isinstance(module, Rehearsal) for module in model.modules()), "it is judged as it would ship"
        torch.rand(3)  # which must not reach the training
        self.models.append(model)
        self.seen += 1
        return self.scores[self.seen - 1]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("steps", [[], [ex.Prune(0.5), ex.Quantize(4)]], ids=str)
def test_the_best_state_is_what_comes_out(steps: list[ex.Step], average: float) -> None:
    evaluate = Scores(0.5, 0.9, 0.7, 0.6)
    task = labelled(evaluate=evaluate)
    small = ex.run(task, steps)[0] if steps else task.model
    model, record = ex.Recover(epochs=4, learning_rate=1e-2, keep="best", average=average)(small, task)
    assert evaluate.seen == 4
    assert torch.equal(weights(model), weights(evaluate.models[1]))
    assert not torch.equal(weights(model), weights(evaluate.models[3]))
    assert record.figures["quality"] == pytest.approx(0.9)
    assert record.changes[1].what == "best after 16 of 32 updates"


def test_looks_leave_the_training_as_it_is() -> None:
    plain, _ = recovered(labelled(), epochs=3)
    looked, _ = recovered(labelled(evaluate=Scores(*[0.1] * 6)), epochs=3, keep="last", patience=9, every=0.5)
    assert torch.equal(weights(plain), weights(looked))


def test_a_training_ends_when_patience_does() -> None:
    evaluate = Scores(0.5, 0.9, 0.7, 0.9, *[0.1] * 10)
    model, record = recovered(labelled(evaluate=evaluate), epochs=14, patience=2)
    assert evaluate.seen == 4
    assert record.figures["batches"] == 32
    assert torch.equal(weights(model), weights(evaluate.models[1])), "with patience the best is kept unless told"
    assert "stopped after 32: 2 looks found none better" in record.changes[1].what
    last, _ = recovered(labelled(evaluate=(scores := Scores(0.9, 0.5, 0.4))), epochs=14, patience=2, keep="last")
    assert torch.equal(weights(last), weights(scores.models[2]))


def test_looks_come_as_often_as_told_and_at_the_end() -> None:
    for every, looks in ((1.0, 3), (0.5, 5), (2.0, 2), (9.0, 1)):
        evaluate = Scores(*[0.5] * looks)
        recovered(labelled(evaluate=evaluate), epochs=2.5, keep="best", every=every)
        assert evaluate.seen == looks


def test_a_state_that_is_not_whole_yet_is_never_the_best() -> None:
    evaluate = Scores(*[1.0 - 0.1 * place for place in range(8)])
    task = labelled(evaluate=evaluate)
    model, record = recovered(task, epochs=8, during=[ex.Prune(0.8)], tight=0.5, keep="best")
    zeros = torch.cat([(site.read() == 0).flatten() for site in sites(model)]).float().mean()
    assert zeros > 0.7
    assert evaluate.seen == 5, "looks begin when the step is whole"
    assert record.changes[1].what == "best after 32 of 64 updates"


class Breaking:
    """A loss that is none at all from a call on; the first batch calls twice."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        return nn.functional.cross_entropy(outputs, targets) * (1.0 if self.left >= 0 else math.nan)


def test_a_loss_that_breaks_puts_the_best_state_back() -> None:
    evaluate = Scores(0.5, 0.9, 0.7)
    task = replace(labelled(evaluate=evaluate), loss=Breaking(30))
    model, record = recovered(task, epochs=6, keep="best")
    assert torch.equal(weights(model), weights(evaluate.models[1]))
    (said,) = record.skipped
    assert said.what == "training diverged: the loss became nan after 30 batches"
    assert said.why.startswith("the state after 16 of 48 updates, the best so far, was put back; use a lower learning_rate")
    assert math.isfinite(record.figures["loss_last"])


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_without_a_judge_it_falls_back_to_where_the_losses_were_least(average: float) -> None:
    task = replace(labelled(), loss=Breaking(100))
    model, record = recovered(task, epochs=20, average=average)
    assert bool(torch.isfinite(weights(model)).all())
    assert "was put back" in record.skipped[0].why
    assert not torch.equal(weights(model), weights(task.model))


def test_what_breaks_before_it_is_whole_or_within_a_limit_is_an_error() -> None:
    for arguments in ({"during": [ex.Prune(0.8)]}, {"memory": "1 GB"}):
        task = replace(labelled(), loss=Breaking(40))
        with pytest.raises(TaskError, match="training diverged: the loss became nan after 40 batches; use a lower"):
            recovered(task, epochs=10, **arguments)


def test_a_judge_must_be_there() -> None:
    with pytest.raises(TaskError, match=r"patience=3 goes by .* the task has no evaluate; give Task\(evaluate="):
        recovered(labelled(), patience=3)
    with pytest.raises(TaskError, match="keep='best' goes by"):
        recovered(labelled(), keep="best")
    assert recovered(labelled(), keep="last")[1].figures["batches"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patience": 0}, "patience=0"),
        ({"keep": "first"}, "use 'last' or 'best'"),
        ({"every": 0}, "every=0 is no number of epochs"),
        ({"every": 2.0}, "every=2.0 is for looks at the quality, and none is asked for"),
    ],
)
def test_looks_that_make_no_sense_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RangeError, match=words):
        ex.Recover(**arguments)


def test_progress_says_how_the_training_stands() -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *said: heard.append(said)):
        recovered(labelled(evaluate=Scores(0.5, 0.75)), epochs=2, keep="best")
    assert heard[0] == ("recovering", 0, 16)
    assert heard[-1][1:] == (16, 16)
    assert heard[-1][0] == heard[-2][0], "a bar knows its row by its name"
    assert heard[10][0].startswith("recovering: loss ")
    assert heard[10][0].endswith(", quality 0.5")


def test_a_snapshot_brings_everything_back() -> None:
    task = labelled()
    student = ex.prepare(task, [ex.Prune(0.5), ex.Share(2)])
    before, taken = {name: tensor.clone() for name, tensor in student.state_dict().items()}, Snapshot.of(student)
    leaf = sites(student)[0].tensor
    assert isinstance(leaf, Rehearsal)
    grid = leaf.grid
    for parameter in student.parameters():
        parameter.data += 1
    leaf.keep = None
    leaf.grid = leaf.named = None
    student[1].running_mean += 1  # type: ignore[index,operator]
    taken.put_(student)
    assert leaf.grid == grid
    assert student.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
