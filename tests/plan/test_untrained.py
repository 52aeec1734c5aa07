"""Thin layers and one tolerance: the best of both is found by a few trials, and what cannot be applied ends it."""

from __future__ import annotations

import math

import pytest

import enxuto as ex
from enxuto.plan.history import Trial
from enxuto.plan.search import next_of
from enxuto.plan.untrained import HALVINGS, IDLE, Recipe, Tries, Wish, folded_or_not, untrained


def parts(recipe: Recipe) -> tuple[float, float]:
    thin = [step.size for step in recipe if isinstance(step, ex.Factorize)]
    [tolerance] = [step.tolerance for step in recipe if isinstance(step, ex.Quantize)]
    return (thin[0] if thin else 1.0), tolerance


def play(best_size: float, allowed: float = 0.005) -> list[tuple[float, float, Trial, bool]]:
    """Layers of this size lose least beside their bytes; thinner ones lose more, and so do coarser tolerances."""
    wish = Wish(
        does=lambda trial: trial.drop <= allowed,
        coarser=lambda trial: trial.drop <= allowed,
        cost=lambda trial: trial.file_bytes,
        enough=lambda trial: False,
    )
    recipes, tried, trial = untrained([()], wish), [], None
    for _ in range(200):
        try:
            recipe = recipes.send(trial)
        except StopIteration:
            return tried
        size, tolerance = parts(recipe)
        file_bytes = round(1e5 * size * max(0.2, -math.log10(tolerance) - 1))
        drop = 0.004 * (tolerance / 3e-4) + (0.2 * (best_size - size) if size < best_size else 0.0)
        drop *= 0.5 if isinstance(recipe[-1], ex.Tune) else 1.0
        trial = Trial(0.0, "", file_bytes, 0.0, False, "", drop)
        tried.append((size, tolerance, trial, isinstance(recipe[-1], ex.Tune)))
    raise AssertionError("no end")


@pytest.mark.parametrize("best_size", [1.0, 0.4, 0.15])
def test_the_thinnest_layers_that_pay_are_found(best_size: float) -> None:
    tried = play(best_size)
    fitting = [(trial.file_bytes, size) for size, _, trial, _ in tried if trial.drop <= 0.005]
    assert min(fitting)[1] <= max(0.5, best_size)
    whole = min(file_bytes for file_bytes, size in fitting if size == 1)
    assert min(fitting)[0] <= whole
    assert len({size for size, _, _, _ in tried}) < 10


def test_the_tolerance_is_near_the_coarsest_that_will_do() -> None:
    fitting = [(tolerance, tuned) for size, tolerance, trial, tuned in play(1.0) if size == 1 and trial.drop <= 0.005]
    untuned, tuned = (max(tolerance for tolerance, each in fitting if each is way) for way in (False, True))
    assert 3e-4 <= untuned <= 3.75e-4 * 1.001, "0.004 at 0.0003 is allowed to become 0.005"
    assert 6.5e-4 <= tuned <= 7.5e-4 * 1.001, "and twice that where tuning halves what is lost"


def test_sizes_that_bring_nothing_end_it() -> None:
    wish = Wish(lambda trial: True, lambda trial: True, lambda trial: trial.file_bytes, lambda trial: False)
    recipes, sizes, trial = untrained([()], wish), [], None
    for _ in range(200):
        try:
            sizes.append(parts(recipes.send(trial))[0])
        except StopIteration:
            break
        trial = Trial(0.0, "", 1000, 0.0, False, "", 0.0)
    assert len(set(sizes)) == 1 + IDLE


def test_a_network_that_takes_no_such_step_is_left_at_once() -> None:
    wish = Wish(lambda trial: True, lambda trial: True, lambda trial: trial.file_bytes, lambda trial: False)
    recipes = untrained([(ex.Fold(),)], wish)
    assert parts(next(recipes))[0] == 1
    with pytest.raises(StopIteration):
        recipes.send(None)
    recipes = untrained([()], wish)
    next(recipes)
    asked = [parts(recipes.send(Trial(0.0, "", 1000, 0.0, False, "", 0.0))) for _ in range(HALVINGS)]
    assert asked[-1][0] < 1
    tuned = recipes.send(None)
    assert [type(step) for step in tuned] == [ex.Quantize, ex.Tune]
    assert [type(step) for step in recipes.send(None)] == [ex.Quantize, ex.Repair], "where no tuning is better than none"
    assert [type(step) for step in recipes.send(None)] == [ex.Prune, ex.Quantize], (
        "what cannot be brought back is not tried again"
    )
    with pytest.raises(StopIteration):
        recipes.send(None)


def test_what_no_tuning_brings_back_is_repaired() -> None:
    wish = Wish(lambda trial: True, lambda trial: True, lambda trial: trial.file_bytes, lambda trial: False)
    recipes, tried, trial = untrained([()], wish), [], None
    while (recipe := next_of(recipes, trial)) is not None:
        tried.append(tuple(type(step) for step in recipe))
        trial = None if ex.Tune in tried[-1] else Trial(0.0, "", 1000, 0.0, False, "", 0.0)
    assert tried[-1] == (ex.Prune, ex.Quantize, ex.Repair)
    assert tried.count((ex.Quantize, ex.Tune)) == 1


@pytest.mark.parametrize("ruin", [True, False])
def test_whether_folding_pays_is_tried_not_believed(ruin: bool) -> None:
    """Folded files are smaller here; where folding ruins the network none of them will do."""
    wish = Wish(lambda t: t.drop <= 0.005, lambda t: t.drop <= 0.005, lambda t: t.file_bytes, lambda t: False)
    tried: list[Recipe] = []
    chosen: list[Recipe] = []

    def family() -> Tries:
        chosen.append((yield from untrained(folded_or_not((), (ex.Fold(),)), wish)))

    recipes, trial = family(), None
    while (recipe := next_of(recipes, trial)) is not None:
        tried.append(recipe)
        folded = ex.Fold() in recipe
        trial = Trial(0.0, "", 900 if folded else 1000, 0.0, False, "", 0.5 if folded and ruin else 0.0)
    assert chosen == [() if ruin else (ex.Fold(),)]
    assert all((ex.Fold() in recipe) is not ruin for recipe in tried[2 * HALVINGS :])
