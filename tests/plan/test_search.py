"""The search keeps the best so far, ends when it should, and says what it tried."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import enxuto as ex
from enxuto.errors import NothingChangedError
from enxuto.plan import search as plan
from enxuto.plan.history import End, History, in_words
from enxuto.plan.search import Search, smallest_file
from enxuto.plan.verdict import advise, judge
from toys import Mlp


def task(**more: object) -> ex.Task:
    x = torch.randn(256, 12)
    model = Mlp()
    y = model(x).argmax(1)
    parts = {
        "calibration": [x[:64]],
        "evaluate": lambda m: (m(x).argmax(1) == y).float(),
        "train": [(x[:128], y[:128]), (x[128:], y[128:])],
        "loss": functional.cross_entropy,
    }
    return ex.Task(model, **(parts | more))


def search(folder: Path, target: ex.Target, seconds: float = 20.0, **more: object) -> Search:
    brought = task(**more)
    assert brought.evaluate is not None
    return Search(brought, target, seconds, folder, brought.evaluate, target.limit_bytes(6000))


def test_a_search_for_a_size_ends_at_the_first_file_that_fits_and_loses_little(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(size=1500, max_drop=0.2), seconds=900)
    found.run()
    assert found.end == End("goal", 900)
    assert found.trials[found.best].file_bytes <= 1500
    assert found.trials[found.best].drop <= 0.2
    assert all(trial.file_bytes > 1500 for trial in found.trials[:-1])


@pytest.mark.parametrize("goal", [{"max_drop": 0.0}, {}])
def test_a_network_whose_weights_are_shared_already_is_searched_like_others(tmp_path: Path, goal: dict[str, float]) -> None:
    brought = task()
    small, _ = ex.Share(bits=3, biases=8)(brought.model, brought)
    ex.save(small, tmp_path / "given.nxt", original=small)
    size = (tmp_path / "given.nxt").stat().st_size
    assert brought.evaluate is not None
    found = Search(
        dataclasses.replace(brought, model=small), ex.Target(size=size, **goal), 20.0, tmp_path, brought.evaluate, size
    )
    found.run()
    best = found.trials[found.best]
    assert (best.drop, best.file_bytes <= size) == (0, True)
    assert smallest_file(found.task, tmp_path).stat().st_size < size


def test_the_best_is_the_best_of_what_was_tried(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(max_drop=0.3), seconds=6)
    found.run()
    allowed = [t.file_bytes for t in found.trials if t.drop <= 0.3]
    assert found.trials[found.best].file_bytes == min(allowed)
    assert [trial.kept for trial in found.trials].count(True) >= 1


def test_an_interrupt_keeps_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(tmp_path, ex.Target(max_drop=0.3))
    attempt, calls = found.attempt, []

    def interrupted(recipe: tuple[ex.task.Step, ...]) -> bool:
        calls.append(recipe)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attempt(recipe)

    monkeypatch.setattr(found, "attempt", interrupted)
    found.run()
    assert found.end == End("interrupt", 20.0)
    assert found.best >= 0


def test_an_interrupt_before_the_first_result_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(tmp_path, ex.Target(max_drop=0.3))

    def stop(recipe: tuple[ex.task.Step, ...]) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(found, "attempt", stop)
    with pytest.raises(KeyboardInterrupt):
        found.run()


def test_macs_alone_ask_for_no_smaller_file(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(macs=0.6))
    found.run()
    assert len(found.trials) == 1
    assert "PruneChannels" in found.trials[0].recipe


def test_no_recipe_goes_below_the_smallest_file(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(max_drop=0.99), seconds=4)
    found.run()
    assert smallest_file(found.task, tmp_path).stat().st_size < min(trial.file_bytes for trial in found.trials)


def test_a_missed_goal_is_explained(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(size=700, max_drop=0.1), seconds=3)
    found.run()
    missed = [line for line in judge(found.target, _evaluation(found)) if not line.met]
    assert [line.goal for line in missed] == ["size"]
    advice = " ".join(advise(found, missed))
    assert "the smallest file was" in advice
    assert "search ended because" in advice


def test_a_met_goal_needs_no_advice(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(size=5000), seconds=3)
    found.run()
    assert advise(found, judge(found.target, _evaluation(found))) == ()


def _evaluation(found: Search) -> ex.evaluation.measurement.Evaluation:
    from enxuto.evaluation.measurement import Evaluation, Measurement

    def measured(size: int) -> Measurement:
        return Measurement(
            file_bytes=size,
            quality=1.0,
            parameters=1,
            macs=1,
            latency_ms=1.0,
            latency_samples_ms=(1.0,),
            peak_memory_bytes=1,
            precision="fp32",
        )

    return Evaluation(
        original=measured(6000),
        compressed=measured(found.trials[found.best].file_bytes),
        quality_name="test",
        quality_change=0.0,
        quality_change_interval=None,
        samples=0,
    )


def test_a_network_of_no_known_layer_is_refused(tmp_path: Path) -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(12, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    brought = ex.Task(Raw(), calibration=[torch.randn(4, 12)])
    with pytest.raises(ex.Error, match="Raw"):
        ex.compress(brought, target=ex.Target(max_drop=0.1), time="3s", out=tmp_path)


def test_norms_that_cannot_be_folded_do_not_stop_the_search(tmp_path: Path) -> None:
    """Batch norm before its layer: Fold has nothing to do, and every recipe must do without it."""
    model = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    brought = ex.Task(model, calibration=[torch.randn(64, 12)])
    found = Search(brought, ex.Target(size=1200), 4.0, tmp_path, lambda m: torch.ones(8), 1200)
    found.run()
    assert found.best >= 0
    assert all("Fold" not in trial.recipe for trial in found.trials)


class SlowLoader:
    """Training data that takes its time: `seconds` for each batch after the first `free`."""

    def __init__(self, batches: list[object], seconds: float, free: int) -> None:
        self.batches, self.seconds, self.left = batches, seconds, free

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> object:
        return self.batches[index]

    def __iter__(self):  # type: ignore[no-untyped-def]
        for batch in self.batches:
            self.left -= 1
            if self.left < 0:
                time.sleep(self.seconds)
            yield batch


def test_a_training_that_is_slower_than_was_measured_ends_with_the_time(tmp_path: Path) -> None:
    x = torch.randn(128, 12)
    batches = [(x, torch.zeros(128, dtype=torch.long))] * 50
    found = search(tmp_path, ex.Target(max_drop=0.5), seconds=4, train=SlowLoader(batches, 0.5, free=8))
    found.run()
    assert found.end is not None
    assert found.end.cause == "time"
    assert found.best >= 0


def test_where_no_training_fits_into_the_time_nothing_is_trained(tmp_path: Path) -> None:
    x = torch.randn(128, 12)
    batches = [(x, torch.zeros(128, dtype=torch.long))] * 2000
    found = search(tmp_path, ex.Target(macs=0.6, max_drop=0.5), seconds=2, train=SlowLoader(batches, 0.2, free=0))
    found.run()
    assert found.best >= 0
    assert all("Recover" not in trial.recipe for trial in found.trials)


def test_a_search_that_starts_again_knows_what_it_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves behind: the file of the trials and the checkpoints."""
    brought, target = task(), ex.Target(max_drop=0.3)
    assert brought.evaluate is not None

    def begun() -> Search:
        return Search(brought, target, 60.0, tmp_path, brought.evaluate, math.inf)

    first = begun()
    for recipe in itertools.islice(first._recipes(), 6):
        first.attempt(recipe)
    tried: list[str] = []
    again = begun()
    assert again.left_s <= 60.0 - first.trials[-1].seconds  # the time goes on as well
    really = again._tried
    monkeypatch.setattr(again, "_tried", lambda recipe, words: tried.append(words) or really(recipe, words))
    for recipe in itertools.islice(again._recipes(), 7):
        again.attempt(recipe)
    assert again.trials[:6] == first.trials
    assert tried == [again.trials[6].recipe]
    assert again.trials[again.best].file_bytes <= first.trials[first.best].file_bytes


def test_a_search_whose_time_was_over_repeats_its_result_and_no_more(tmp_path: Path) -> None:
    brought = task()
    assert brought.evaluate is not None
    first = Search(brought, ex.Target(max_drop=0.3), 3.0, tmp_path, brought.evaluate, math.inf)
    first.run()
    again = Search(brought, ex.Target(max_drop=0.3), 3.0, tmp_path, brought.evaluate, math.inf)
    again.run()
    assert again.trials[: len(first.trials)] == first.trials
    assert again.recipes[first.best] == first.recipes[first.best]


def test_a_recipe_that_cannot_be_applied_is_not_tried_again_when_the_time_is_over(tmp_path, monkeypatch) -> None:
    """As `Tune` where no tuning is better than none: only trying tells, and a search that repeats itself has no time to try."""
    brought = task()
    assert brought.evaluate is not None

    def begun() -> Search:
        return Search(brought, ex.Target(max_drop=0.3), 60.0, tmp_path, brought.evaluate, math.inf)

    def nothing(*_: object, **__: object) -> None:
        raise NothingChangedError("nothing to tune.")

    first = begun()
    recipes, trial = first._recipes(), None
    for refused in (False, True, False):
        recipe = plan.next_of(recipes, trial)
        with monkeypatch.context() as patch:
            if refused:
                patch.setattr(plan, "run", nothing)
            trial = first.attempt(recipe)
        assert (trial is None) == refused
    again = begun()
    monkeypatch.setattr(again, "_tried", None)
    again.start -= 1000
    again.run()
    assert (again.trials, again.end) == (first.trials, End("time", 60.0))
    assert list(again.history.refused.values()) == ["nothing to tune."]


@pytest.mark.parametrize("change", ["target", "evaluate", "damage"])
def test_another_search_in_the_same_folder_begins_anew(tmp_path: Path, change: str) -> None:
    brought, target = task(), ex.Target(max_drop=0.3)
    assert brought.evaluate is not None
    first = Search(brought, target, 20.0, tmp_path, brought.evaluate, math.inf)
    first.attempt(next(first._recipes()))
    assert History(first.history.path, first.history.key).known
    evaluate = brought.evaluate
    if change == "target":
        target = ex.Target(max_drop=0.2)
    elif change == "evaluate":
        evaluate = lambda m: torch.full((256,), 0.5)  # noqa: E731
    else:
        first.history.path.write_text('{"key": ')
    assert not Search(brought, target, 20.0, tmp_path, evaluate, math.inf).history.known


def test_a_recipe_whose_training_diverges_is_given_up_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = search(tmp_path, ex.Target(max_drop=0.3), seconds=900)
    monkeypatch.setattr("enxuto.plan.levels.LEVEL_RATE", 1e30)
    recipes = found._recipes()
    while "diverged" not in caplog.text:
        found.attempt(next(recipes))
    tried = len(found.trials)
    assert ["diverged" in trial.why for trial in found.given_up] == [True]
    found.attempt(next(recipes))
    assert len(found.trials) == tried + 1
    assert all("1e+30" not in trial.recipe for trial in found.trials)


def refusing(monkeypatch: pytest.MonkeyPatch, place: str, refused: Callable[[], bool]) -> list[str]:
    """The searches' `save` or `load`, which refuses files from now on; the calls so far."""
    real, calls = getattr(plan, place), []

    def tried(*arguments: Any, **more: Any) -> object:
        calls.append(place)
        if refused():
            raise ex.errors.ArtifactError("it is a file of no network.")
        return real(*arguments, **more)

    monkeypatch.setattr(plan, place, tried)
    return calls


@pytest.mark.parametrize("place", ["save", "load"])
def test_a_recipe_whose_file_cannot_be_read_back_costs_that_recipe(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought, target = task(), ex.Target(max_drop=0.3)
    assert brought.evaluate is not None
    found = Search(brought, target, 900.0, tmp_path, brought.evaluate, math.inf)
    recipes = found._recipes()
    with monkeypatch.context() as patch:
        refusing(patch, place, lambda: True)
        first = next(recipes)
        assert found.attempt(first) is None
    assert found.attempt(next(recipes)) is not None
    (given_up,) = found.given_up
    assert (given_up.recipe, given_up.why) == (in_words(first), "it is a file of no network.")
    assert (given_up.kept, given_up.given_up, found.best, len(found.trials)) == (False, True, 0, 1)
    again = Search(brought, target, 900.0, tmp_path, brought.evaluate, math.inf)
    monkeypatch.setattr(again, "_tried", None)
    assert again.attempt(first) is None, "an earlier run has tried it"
    assert again.given_up[0].why == given_up.why


def test_what_was_given_up_stands_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    calls = refusing(monkeypatch, "load", lambda: len(calls) == 2)
    found = ex.compress(task(), target=ex.Target(size=1000, max_drop=0.2), time=900, out=tmp_path)
    assert found.met
    assert [trial.given_up for trial in found.history].index(True) == 1
    told = found.document()["history"][1]
    assert (told["quality"], told["kept"], told["why"]) == (None, False, "it is a file of no network.")
    ex.report(found, tmp_path / "page.html")
    assert "dropped: it is a file of no network." in (tmp_path / "page.html").read_text()


def test_a_search_of_which_every_file_is_refused_ends_with_its_time_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, "load", lambda: True)
    with pytest.raises(ex.errors.TargetError, match="no recipe could be applied to this network; it is a file of no network"):
        ex.compress(task(), target=ex.Target(max_drop=0.2), time=2, out=tmp_path)


def test_a_network_with_zeros_already_is_pruned_further(tmp_path: Path) -> None:
    brought = task()
    sparse, _ = ex.run(brought, [ex.Prune(sparsity=0.6)])
    brought = dataclasses.replace(brought, model=sparse)
    found = Search(brought, ex.Target(max_drop=0.99), 600.0, tmp_path, lambda m: torch.ones(64), math.inf)
    for recipe in found._recipes():
        found.attempt(recipe)
        if any(isinstance(step, ex.Prune) for step in recipe):
            break
    assert "Prune" in found.trials[-1].recipe


def test_time_that_is_left_goes_into_longer_training(tmp_path: Path) -> None:
    found = search(tmp_path, ex.Target(size=700, max_drop=0.0), seconds=60)
    found.history.decided = [0.1]
    recipes = itertools.islice(found._recipes(), 40)
    for recipe in recipes:
        found.attempt(recipe)
    trained = {step.epochs for recipe in found.recipes for step in recipe if isinstance(step, ex.Recover)}
    assert max(trained) > 1
