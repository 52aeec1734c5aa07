"""The best quality that fits: the bytes allowed are used, training grows with the time, the end comes when nothing is gained."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

import enxuto as ex
from enxuto.plan.fitting import PATIENCE, TIGHT, Fitting, Recipe
from enxuto.plan.history import Trial
from enxuto.sizes import parse_bytes

WEIGHTS = 1000.0


def size_of(recipe: Recipe) -> int:
    """A plausible file: each weight that is left takes its bits and its place."""
    density, bits = 1.0, 32
    for step in recipe:
        if isinstance(step, ex.Recover) and isinstance(step.rate, str):
            return max(100, round(1.05 * parse_bytes(step.rate)))  # near what it was trained for
        density = 1 - step.sparsity if isinstance(step, ex.Prune) else density
        bits = step.bits if isinstance(step, (ex.Share, ex.Quantize)) else bits
    gone = 1 - density
    place = -math.log2(density) - (gone / density * math.log2(gone) if gone else 0.0)
    return round(100 + WEIGHTS * density * (bits + place) / 8)


def drop_of(recipe: Recipe) -> float:
    """Fewer weights and coarser codes lose more, training brings back."""
    trained = sum(step.epochs for step in recipe if isinstance(step, ex.Recover))
    return 300 / size_of(recipe) ** 0.9 / (1 + trained)


def rated(recipe: Recipe) -> bool:
    return any(getattr(step, "rate", None) for step in recipe)


def play(
    limit: float, epochs: Callable[[float, float], float], drop: Callable[[Recipe], float] = drop_of, *, most: int = 500
) -> tuple[Fitting, list[tuple[Recipe, int]]]:
    """Everything that is tried, answered by the two functions above."""
    fitting = Fitting((), (), 1.0, limit, epochs)
    recipes, tried, trial = fitting.recipes(), [], None
    for _ in range(most):
        try:
            recipe = recipes.send(trial)
        except StopIteration:
            return fitting, tried
        tried.append((recipe, size_of(recipe)))
        trial = Trial(0.0, "", size_of(recipe), 0.0, False, "", drop(recipe))
    raise AssertionError("no end")


def never(passes: float, before: float) -> float:
    return 0.0


@pytest.mark.parametrize("limit", [180, 300, 420, 700])
def test_files_use_the_bytes_that_are_allowed(limit: int) -> None:
    fitting, tried = play(limit, never)
    assert fitting.best is not None
    assert TIGHT * limit <= fitting.best.file_bytes <= limit
    assert len({recipe for recipe, _ in tried}) == len(tried)


def test_without_training_all_ways_to_write_weights_are_tried() -> None:
    _, tried = play(300, never)
    kinds = {(type(step), getattr(step, "per", "")) for recipe, _ in tried for step in recipe}
    weights = {(ex.Share, ""), (ex.Quantize, "network"), (ex.Quantize, "channel"), (ex.Prune, "")}
    assert kinds == weights | {(ex.Factorize, ""), (ex.Tune, "")}


def test_training_grows_until_the_time_holds_no_more_and_still_fits() -> None:
    lengths = iter([0.5, 1.5, 4.5, 0.0])
    fitting, _ = play(200, lambda passes, before: next(lengths), lambda recipe: drop_of(recipe) * (10 if rated(recipe) else 1))
    assert [step.epochs for step in fitting.recipe if isinstance(step, ex.Recover)][-1] == 4.5
    assert TIGHT * 200 <= size_of(fitting.recipe) <= 200
    assert next(lengths, None) is None


@pytest.mark.parametrize("better", [True, False])
def test_what_trains_for_bytes_goes_on_where_it_loses_less(better: bool) -> None:
    """As long as all levels together; and asked again for what the file missed."""
    lengths = iter([0.5, 1.5, 0.0])

    def drop(recipe: Recipe) -> float:
        return drop_of(recipe) * (0.1 if better else 10.0) if rated(recipe) else drop_of(recipe)

    fitting, tried = play(200, lambda passes, before: next(lengths), drop)
    rounds = [[step for step in recipe if isinstance(step, ex.Recover) and step.rate] for recipe, _ in tried]
    asked = [steps[0] for steps in rounds if steps]
    assert rated(fitting.recipe) == better
    assert len({step.epochs for step in asked}) == (2 if better else 1)
    assert asked[0].epochs > 0.5 * 3
    longer = [recipe for recipe, _ in tried if any(getattr(step, "epochs", 0) == 1.5 for step in recipe)]
    levels = [recipe for recipe in longer if sum(isinstance(step, ex.Prune) for step in recipe) > 1]
    assert bool(levels) != better


def test_rounds_that_bring_nothing_end_the_search() -> None:
    asked = []

    def epochs(passes: float, before: float) -> float:
        asked.append(before)
        return 3 * before or 1.0

    play(200, epochs, lambda recipe: 300 / size_of(recipe) ** 0.9)
    assert len(asked) <= PATIENCE + 1


def test_a_network_that_loses_nothing_is_not_trained() -> None:
    _, tried = play(700, lambda passes, before: 1.0, lambda recipe: 0.0)
    assert not any(isinstance(step, ex.Recover) for recipe, _ in tried for step in recipe)


def test_a_limit_that_no_density_reaches_ends_without_a_sparsity_of_one() -> None:
    """What a size between the smallest file and what biases and names need asks for."""
    _, tried = play(90, lambda passes, before: 3 * before or 0.1)
    sparsities = [step.sparsity for recipe, _ in tried for step in recipe if isinstance(step, ex.Prune)]
    assert max(sparsities) < 1


def test_a_filling_ends_at_a_density_that_was_tried_and_fits() -> None:
    fitting = Fitting((), (), 1.0, 400, never)

    def stepped(density: float) -> int:  # a file whose bytes come in steps, as discrete codings make them
        return 100 + 330 * math.ceil(4 * density)

    filling = fitting._filled(fitting._pruned((ex.Share(bits=4),)), 0.9)
    tried: list[float] = []
    trial, end = None, None
    while end is None:
        try:
            recipe = filling.send(trial)
        except StopIteration as stop:
            end = stop.value
        else:
            tried.append(1 - next((step.sparsity for step in recipe if isinstance(step, ex.Prune)), 0.0))
            trial = Trial(0.0, "", stepped(tried[-1]), 0.0, False, "", 0.1)
    assert round(end, 4) in [round(density, 4) for density in tried]
    assert stepped(end) <= 400 or all(stepped(density) > 400 for density in tried)
