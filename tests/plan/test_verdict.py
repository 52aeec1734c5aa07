"""Goals that were met or missed, told one way; a ruin is never met; advice says what would have done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import enxuto as ex
from enxuto.plan.history import End, Trial
from enxuto.plan.verdict import Verdict, advise, judge
from figures import evaluation


@pytest.mark.parametrize(
    ("before", "after", "allowed", "words"),
    [
        (0.9, 0.94, 0.02, "quality (test) gained 4 points, at most 2 points may be lost: met"),
        (0.9, 0.8957, 0.005, "quality (test) lost 0.43 points, at most 0.5 points may be lost: met"),
        (0.9, 0.88, 0.01, "quality (test) lost 2 points, at most 1 point may be lost: missed"),
        (0.9, 0.9, 0.01, "quality (test) lost nothing, at most 1 point may be lost: met"),
        (31.5, 30.0, 1.0, "quality (test) lost 1.5, at most 1 may be lost: missed"),
    ],
)
def test_changes_of_quality_are_told_one_way(before: float, after: float, allowed: float, words: str) -> None:
    assert [line.words for line in judge(ex.Target(max_drop=allowed), evaluation(before, after))] == [words]


def test_a_ruin_is_said_first_and_is_not_met() -> None:
    lines = judge(ex.Target(compression=8), evaluation(0.72, 0.15))
    assert [line.met for line in lines] == [False, True]
    assert lines[0].words.startswith("this is no longer the same network")
    assert lines[0].words.endswith("missed")
    assert all(line.met for line in judge(ex.Target(compression=8), evaluation(0.72, 0.6)))


def test_a_ruin_is_missed_where_no_goal_was_given_too() -> None:
    (line,) = judge(None, evaluation(0.72, 0.15))
    assert (line.goal, line.met) == ("quality", False)
    assert judge(None, evaluation(0.72, 0.6)) == ()


def test_who_allows_the_ruin_by_name_gets_it() -> None:
    (line,) = judge(ex.Target(max_drop=0.7), evaluation(0.72, 0.15))
    assert line.met


def searched(target: ex.Target, trials: list[Trial], end: End, *, samples: int = 10_000, limit: float = float("inf")) -> object:
    before = (torch.arange(samples) < 0.9 * samples).double()
    best = [place for place, trial in enumerate(trials) if trial.kept][-1]
    return SimpleNamespace(
        task=SimpleNamespace(train=[], evaluate=len),
        target=target,
        trials=trials,
        end=end,
        best=best,
        before=before,
        limit_bytes=limit,
        seconds=600.0,
    )


def trial(size: int, quality: float, error: float, kept: bool = False) -> Trial:
    return Trial(1.0, "", size, quality, kept, "", 0.9 - quality + 1.64 * error, error)


MISSED = [Verdict("max_drop", False, "")]


def test_time_is_named_when_time_ended_the_search_whatever_the_words() -> None:
    trials = [trial(900, 0.89, 0.001, kept=True)]
    target = ex.Target(max_drop=0.005)
    ended = {cause: " ".join(advise(searched(target, trials, End(cause, 600)), MISSED)) for cause in ("time", "merit")}  # type: ignore[arg-type]
    assert "more time lets each level train longer" in ended["time"]
    assert "more time" not in ended["merit"]
    slow = End("time", 600, epoch_s=2603)
    assert "an epoch of training takes 2.6e+03 s" in advise(searched(target, trials, slow), MISSED)[0]  # type: ignore[arg-type]


def test_the_validation_samples_that_were_missing_are_told() -> None:
    trials = [trial(2000, 0.9, 0.001, kept=True), trial(1000, 0.897, 0.0025)]
    words = " ".join(advise(searched(ex.Target(max_drop=0.005), trials, End("merit", 600)), ()))  # type: ignore[arg-type]
    assert "a file of 1.00 kB lost 0.3 points on validation data, but on 10,000 samples chance may add 0.41 points" in words
    assert "with 43,000 samples it would have been within 0.5 points" in words
    close = [trial(2000, 0.9, 0.001, kept=True), trial(1950, 0.897, 0.0025)]
    assert advise(searched(ex.Target(max_drop=0.005), close, End("merit", 600)), ()) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [{"max_drop": 150}, {"max_drop": 0.95}, {"max_drop": 0.9}])
def test_more_than_the_original_has_cannot_be_allowed(tmp_path: Path, target: dict[str, float]) -> None:
    x = torch.randn(20, 12)
    from toys import Mlp

    brought = ex.Task(Mlp(), calibration=[x], evaluate=lambda model: 0.9)
    with pytest.raises(ex.Error, match=r"the whole quality of the original, 0\.9, or more: .* write 0\.005"):
        ex.compress(brought, target=ex.Target(**target), out=tmp_path)  # type: ignore[arg-type]


def test_points_in_place_of_a_fraction_are_told_how_to_be_written() -> None:
    from toys import Mlp

    brought = ex.Task(Mlp(), calibration=[torch.randn(20, 12)])
    for points, fraction in ((3, "0.03 or '3%'"), (1, "0.01 or '1%'")):
        with pytest.raises(ex.Error, match=f"for {points} of 100 points write {fraction}"):
            ex.compress(brought, target=ex.Target(max_drop=points))
    with pytest.raises(ex.Error, match="max_drop=True"):
        ex.Target(max_drop=True)


def test_more_than_a_hundred_percent_cannot_be_lost() -> None:
    with pytest.raises(ex.Error, match="max_drop='200%' is more than all there is"):
        ex.Target(max_drop="200%")
    assert ex.Target(max_drop="100%").drop == 1
