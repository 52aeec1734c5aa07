"""What else a network should do: judged before and after a recipe, and said in its record."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import TaskError

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def transferred(**more: Any) -> tuple[ex.Task, nn.Module]:
    """A new head on a body, and the network that the body is of."""
    torch.manual_seed(0)
    old = Net(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), 3).eval()
    labels = old(X).argmax(1)

    def still(model: nn.Module) -> Tensor:
        return (old.head(model.body(X)).argmax(1) == labels).float()

    train = [(X, torch.arange(60) % 4)]
    task = ex.Task(Net(old.body, 4), calibration=[X], train=train, loss=nn.functional.cross_entropy, also={"old": still}, **more)
    return task, old


def test_a_record_says_what_was_given_up_of_an_old_task() -> None:
    task, old = transferred()
    small, records = ex.run(task, [ex.Recover(epochs=40, teacher=0, learning_rate=0.1), ex.Prune(0.5)])
    left = float((old.head(small.body(X)).argmax(1) == old(X).argmax(1)).float().mean())
    assert 0 < left < 1
    figures = records[-1].figures
    assert figures["also old, before"] == 1.0
    assert figures["also old, after"] == pytest.approx(left)
    assert records[-1].changes[-1].what == f"also 'old': 1 before, {left:.4g} after"
    assert not any("also" in name for name in records[0].figures)


def test_what_is_frozen_gives_up_nothing_while_its_new_head_learns() -> None:
    task, _ = transferred()
    task.model.body.requires_grad_(False)
    small, records = ex.run(task, [ex.Recover(epochs=10, teacher=0, learning_rate=0.1)])
    assert records[-1].figures["also old, after"] == 1.0
    assert torch.equal(small.body[0].weight, task.model.body[0].weight)
    assert not torch.equal(small.head.weight, task.model.head.weight)
    again, records = ex.run(
        ex.Task(small.requires_grad_(True), calibration=[X], train=task.train, loss=task.loss), [ex.Recover()]
    )
    assert not torch.equal(again.body[0].weight, task.model.body[0].weight)


def test_an_old_head_that_no_longer_fits_is_said_not_raised() -> None:
    task, _ = transferred()
    _, records = ex.run(task, [ex.PruneChannels(sparsity=0.5)])
    (said,) = [each for each in records[-1].skipped if "also" in each.what]
    assert said.what == "also 'old': 1 before, and it cannot be judged any more"
    assert "evaluate failed on Net" in said.why


@pytest.mark.parametrize("also", [len, {"old": 3}, {1: len}], ids=str)
def test_what_names_no_functions_is_refused(also: Any) -> None:
    with pytest.raises(TaskError, match=r"names no functions; write also=\{'the old task': evaluate_old\}"):
        ex.Task(nn.Linear(6, 2), calibration=[X], also=also)
