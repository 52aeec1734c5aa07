"""What may be lost comes before what is to be saved, whatever the goal; the search, its advice and its file follow one choice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import enxuto as ex
from enxuto.plan.choice import rank
from enxuto.plan.history import End
from enxuto.plan.search import Search
from enxuto.plan.verdict import Verdict, advise
from toys import Mlp

Tried = dict[str, tuple[float, int]]  # drop and bytes by name

WHOLE: Tried = {"gentle": (0.0, 7000), "near": (0.04, 2300), "over": (0.25, 1600), "ruined": (0.97, 500)}
BEYOND: Tried = {"gentle": (0.3, 7000), "near": (0.34, 2300), "ruined": (1.0, 500)}


@pytest.mark.parametrize(
    ("tried", "allowed", "limit", "best"),
    [
        (WHOLE, 0.2, 400, "near"),  # out of reach: the smallest within the drop, however near the others come in bytes
        (WHOLE, 0.2, 2500, "near"),
        (WHOLE, 0.2, 7500, "gentle"),  # both fit: the one that loses less
        (WHOLE, 0.3, 1600, "over"),
        (
            WHOLE,
            0.2,
            math.inf,
            "near",
        ),  # the smallest within the drop; so too beside macs and latency, which all tried alike keep
        (WHOLE, math.inf, 2500, "near"),  # bytes alone: the best quality that fits
        (WHOLE, math.inf, 400, "ruined"),  # none fits: the nearest
        (BEYOND, 0.2, 400, "gentle"),  # none within the drop: the one that loses least
        (BEYOND, 0.2, 600, "gentle"),
        (BEYOND, 0.2, math.inf, "gentle"),
        ({"large": (0.1, 900), "small": (0.1, 800)}, 0.1, math.inf, "small"),
        ({"worse": (0.05, 900), "better": (0.04, 900)}, 0.1, 400, "better"),
    ],
)
def test_what_may_be_lost_comes_first(tried: Tried, allowed: float, limit: float, best: str) -> None:
    assert min(tried, key=lambda name: rank(*tried[name], allowed=allowed, limit=limit)) == best
    assert min(reversed(tried), key=lambda name: rank(*tried[name], allowed=allowed, limit=limit)) == best


def searched(folder: Path, target: ex.Target, recipes: list[list[ex.task.Step]]) -> Search:
    """A search that is told what to try, so that no clock has a say."""
    x = torch.randn(256, 12)
    folder.mkdir(exist_ok=True)
    model = Mlp()
    y = model(x).argmax(1)
    brought = ex.Task(model, calibration=[x[:64]], evaluate=lambda m: float((m(x).argmax(1) == y).float().mean()))
    assert brought.evaluate is not None
    found = Search(brought, target, 900.0, folder, brought.evaluate, target.limit_bytes(6000))
    for recipe in recipes:
        found.attempt(tuple(recipe))
    found.end = End("merit", 900.0)
    return found


SHARED: list[list[ex.task.Step]] = [[ex.Share(bits=bits, biases=8)] for bits in (8, 5, 3)]
RUIN: list[ex.task.Step] = [ex.Prune(0.99), ex.Share(bits=2, biases=1)]


def test_a_search_that_cannot_meet_its_goal_ends_within_the_drop_and_says_of_which_file(tmp_path: Path) -> None:
    found = searched(tmp_path, ex.Target(size=100, max_drop=0.2), [*SHARED, RUIN])
    sizes = [trial.file_bytes for trial in found.trials]
    assert sizes == sorted(sizes, reverse=True)
    assert found.trials[-1].drop > 0.2  # the nearest in bytes, and no longer the same network
    assert found.recipes[found.best] == tuple(SHARED[-1])
    advice = " ".join(advise(found, [Verdict("size", False, "")]))
    assert f"within the drop, the smallest file was {ex.sizes.format_bytes(sizes[2])}" in advice
    assert "allow that much" not in advice  # none fits


def test_what_the_bytes_asked_for_would_cost_is_told_beside(tmp_path: Path) -> None:
    ruined = searched(tmp_path / "one", ex.Target(max_drop=0.2), [RUIN]).trials[0].file_bytes
    found = searched(tmp_path / "two", ex.Target(size=ruined, max_drop=0.2), [*SHARED, RUIN])
    assert found.recipes[found.best] == tuple(SHARED[-1])
    advice = " ".join(advise(found, [Verdict("size", False, "")]))
    assert "within the drop, the smallest file was" in advice
    assert "within the size, the best file lost" in advice


def test_where_no_recipe_is_within_the_drop_the_one_that_loses_least_is_kept(tmp_path: Path) -> None:
    """Also where a recipe comes again that was the best when it came first."""
    found = searched(tmp_path, ex.Target(size=100, max_drop=0.0), [RUIN, SHARED[2], SHARED[1], RUIN])
    assert all(trial.drop > 0 for trial in found.trials)
    assert found.recipes[found.best] == tuple(SHARED[1])


def test_a_drop_of_just_what_is_allowed_is_allowed(tmp_path: Path) -> None:
    x = torch.randn(64, 12)
    values = iter([0.8, 0.7])
    found = Search(
        ex.Task(Mlp(), calibration=[x]), ex.Target(max_drop=0.1), 900.0, tmp_path, lambda model: next(values), math.inf
    )
    found.attempt((ex.Share(bits=8),))
    assert 0.8 - 0.7 > 0.1
    assert found.last
