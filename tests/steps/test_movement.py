"""Scores of movement: against the obvious, only where something trains, and not before it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import enxuto as ex
from enxuto.errors import RecipeError
from enxuto.sites import sites
from enxuto.training.tighten import Look
from toys import Mlp, inputs, seeded

X, Y = inputs(Mlp), torch.arange(8) % 5


def task(batches: int = 15) -> ex.Task:
    return ex.Task(seeded(Mlp), calibration=[X], train=[(X, Y)] * batches, loss=F.cross_entropy)


def test_what_stays_is_what_was_pushed_away_from_zero() -> None:
    """A dense twin of each batch gives the gradients of all weights, also of those that are out."""
    steps = [ex.Prune(0.6, scores="movement")]
    model = ex.prepare(task(), steps, gradual=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = ex.Schedule(model, steps, batches=15, end=0.8)
    moved = {weight.key: torch.zeros_like(weight.read()) for weight in sites(model)}
    for _ in range(15):
        twin = ex.convert(model)
        F.cross_entropy(twin(X), Y).backward()
        for key, weight in twin.named_parameters():
            if key in moved:
                leaf = next(each.tensor.leaf for each in sites(model) if each.key == key)  # type: ignore[union-attr]
                moved[key] -= leaf.detach() * weight.grad
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        schedule.observe(optimizer)
        optimizer.step()
        schedule.step()
        if schedule.done <= schedule.last:
            told = {key: each.clone() for key, each in moved.items()}
    scores = torch.cat([told[weight.key].flatten() for weight in sites(model)])
    keep = torch.cat([weight.tensor.keep.flatten() for weight in sites(model)])  # type: ignore[union-attr]
    assert int(keep.count_nonzero()) == len(keep) - round(0.6 * len(keep))
    assert scores[keep].min() >= scores[~keep].max() - 1e-6
    magnitudes = torch.cat([weight.tensor.leaf.detach().abs().flatten() for weight in sites(model)])  # type: ignore[union-attr]
    assert magnitudes[keep].min() < magnitudes[~keep].max(), "it is another choice than that by magnitude"


def test_recover_prunes_by_it_with_the_same_bytes_each_time() -> None:
    step = ex.Recover(during=[ex.Prune(0.7, scores="movement"), ex.Share(3)], learning_rate=1e-2)
    one, two = step(task().model, task())[0], step(task().model, task())[0]
    assert all(torch.equal(a.read(), b.read()) for a, b in zip(sites(one), sites(two), strict=True))
    total = sum(weight.read().numel() for weight in sites(one))
    assert sum(int(weight.read().count_nonzero()) for weight in sites(one)) <= total - round(0.7 * total)
    assert "movement" not in "".join(one.state_dict())


def test_what_gradients_do_not_reach_goes_by_magnitude_by_itself() -> None:
    given = task()
    before = given.model.fc2.weight.requires_grad_(False).detach()  # type: ignore[operator, union-attr]
    small, _ = ex.Recover(during=[ex.Prune(0.7, scores="movement")])(given.model, given)
    after = small.fc2.weight.detach()  # type: ignore[operator, union-attr]
    order = before.abs().flatten().argsort()
    gone = round(0.7 * before.numel())
    assert torch.equal((after == 0).flatten()[order], torch.arange(before.numel()) < gone)
    assert torch.equal(after[after != 0], before[after != 0])


def test_all_steps_that_look_see_the_same_gradients_and_the_next_batch_others() -> None:
    model = ex.prepare(task(), [ex.Prune(0.7, scores="movement")], gradual=True)
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(2):  # passes of one update add up
        F.cross_entropy(model(X), Y).backward()
    look = Look(optimizer, 0, 1)
    one, two = ([gradient for _, _, gradient in look.met(model, "*")] for _ in range(2))
    leaves = [weight.tensor.leaf.grad for weight in sites(model)]  # type: ignore[union-attr]
    assert all(torch.allclose(a, b) and torch.equal(a, c) for a, b, c in zip(one, leaves, two, strict=True))
    assert all(gradient is None for _, _, gradient in Look(optimizer, 1, 1).met(model, "*"))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            lambda: ex.run(task(), [ex.Prune(0.5, scores="movement")]),
            r"by itself has none; write Recover\(during=",
        ),
        (lambda: ex.prepare(task(), [ex.Prune(0.5, scores="movement")]), r"not there before the first batch.*gradual=True"),
        (
            lambda: ex.Recover(during=[ex.Prune(0.5, scores="movement")], tight=0)(task().model, task()),
            r"not there before the first batch.*tight=0\.7",
        ),
    ],
)
def test_where_nothing_has_moved_it_is_refused(what: Callable[[], Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        what()


def test_a_zero_that_came_with_the_network_never_comes_back() -> None:
    pruned, _ = ex.run(task(), [ex.Prune(0.5)])
    given = ex.Task(pruned, calibration=[X], train=[(X, Y)] * 15, loss=F.cross_entropy)
    for scores in ("movement", "lamp", "magnitude"):
        small, _ = ex.Recover(during=[ex.Prune(0.7, scores=scores)], learning_rate=1e-2)(pruned, given)  # type: ignore[arg-type]
        for before, after in zip(sites(pruned), sites(small), strict=True):
            assert not after.read()[before.read() == 0].any()
