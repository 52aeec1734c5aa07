"""Recipes without training: layers made thin by the data, one tolerance for all bits, and what that moved tuned back; a generator
told what they gave.

Fewer, finer numbers are often smaller than many coarse ones: how thin pays is found by trying, thinner each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from enxuto.plan.history import Trial
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.repair import Repair
from enxuto.steps.tune import Tune
from enxuto.task import Step

Recipe = tuple[Step, ...]
Tries = Generator[Recipe, Trial | None, None]
TOLERANCES = (1e-5, 1e-2)
"""From careful to ruinous: between them a file of any size is found by halving, with as many bits for each weight as it needs."""
HALVINGS = 6
AROUND = (0.5, 4.0)  # times the tolerance that was best for layers less thin: where that for thinner ones is looked for
FEWER_HALVINGS = 5
COARSEST = 0.1  # of the outputs' spread, by one step of one value: nothing is left of a network
THIN, THINNER = 0.5, 0.7  # of the weights' bytes in thin layers: first, and times what it was before
THINNEST = 0.02
TUNED = (0.9, 3.0)  # times the tolerance that was best untuned: where that of tuned networks is looked for
ZEROED = (0.6, 1.8)  # times what was best without zeros
ZEROS = 0.3  # of the weights, the others refit: 2 to 13 % smaller files on five of the zoo's networks
BACK: tuple[Recipe, ...] = ((Tune(),), (Repair(),))
"""What brings the outputs back: where no tuning is better than none, means and spreads of layers may be."""
IDLE = 2  # sizes in a row that may bring nothing


@dataclass(frozen=True)
class Wish:
    """What is wanted of a trial: whether it `does`, whether the next tolerance is to be `coarser` than its own, and the `cost`
    of one that does; `enough` ends the halving."""

    does: Callable[[Trial], bool]
    coarser: Callable[[Trial], bool]
    cost: Callable[[Trial], float]
    enough: Callable[[Trial], bool]


def untrained(prefixes: Sequence[Recipe], wish: Wish) -> Generator[Recipe, Trial | None, Recipe]:
    """Whole layers first, then ever thinner ones, each with the tolerance that is best for it, until that brings nothing; then
    what was best tuned, and with some zeros. Returns the beginning, of those given, that is best for whole layers."""
    prefix, best, at = yield from _begun(prefixes, wish)
    if at is None:
        return prefix
    found, idle, size = prefix, 0, THIN
    while idle < IDLE and size >= THINNEST:
        steps = (*prefix, Factorize(size=round(size, 3)))
        cost, tolerance = yield from _halved(steps, wish, _around(at), FEWER_HALVINGS)
        if tolerance is None:
            break  # not to be applied, and thinner layers neither
        idle = 0 if cost < best else idle + 1
        if cost < best or math.isinf(best):
            found, at = steps, tolerance
        best = min(best, cost)
        size *= THINNER
    then: Recipe = ()
    around = at
    for after in BACK:
        _, tolerance = yield from _halved(found, wish, _around(at, TUNED), FEWER_HALVINGS, after)
        if tolerance is not None:
            then, around = after, tolerance
            break
    zeros = (*found, Prune(ZEROS, scores="wanda", refit=True))
    yield from _halved(zeros, wish, _around(around, ZEROED), FEWER_HALVINGS, then)
    return prefix


def _begun(prefixes: Sequence[Recipe], wish: Wish) -> Generator[Recipe, Trial | None, tuple[Recipe, float, float | None]]:
    """The beginning that costs least, with its cost and its tolerance: which one it is only trying tells, as folded batch norms
    make some networks smaller and ruin others."""
    best: tuple[Recipe, float, float | None] = (prefixes[0], math.inf, None)
    for prefix in prefixes:
        cost, tolerance = yield from _halved(prefix, wish, TOLERANCES, HALVINGS)
        if tolerance is not None and (cost < best[1] or best[2] is None):
            best = (prefix, cost, tolerance)
    return best


def folded_or_not(base: Recipe, fold: Recipe) -> tuple[Recipe, ...]:
    """The beginnings to try: with batch norms folded, where there are any, and without."""
    return ((*base, *fold), base) if fold else (base,)


def _around(tolerance: float, times: tuple[float, float] = AROUND) -> tuple[float, float]:
    return tolerance * times[0], min(tolerance * times[1], COARSEST)


def _halved(
    prefix: Recipe, wish: Wish, between: tuple[float, float], halvings: int, then: Recipe = ()
) -> Generator[Recipe, Trial | None, tuple[float, float | None]]:
    """The least cost among tolerances that do, and the last that did; None where the recipe could not be applied."""
    low, high = between
    cost, found = math.inf, None
    for _ in range(halvings):
        middle = halfway(low, high)
        trial = yield (*prefix, tolerated(middle), *then)
        if trial is None:
            return math.inf, None
        if wish.does(trial):
            cost = min(cost, wish.cost(trial))
            found = middle
        if wish.enough(trial):
            break
        low, high = (middle, high) if wish.coarser(trial) else (low, middle)
    return cost, found or halfway(low, high)


def tolerated(tolerance: float) -> Step:
    """The weights in as few bits as this tolerance of the outputs leaves them."""
    return Quantize(tolerance=tolerance, rounding="gptq", biases=8)


def halfway(low: float, high: float) -> float:
    """Between two tolerances, as a person writes it.

    >>> halfway(1e-5, 1e-2)
    0.000316
    """
    return float(f"{math.sqrt(low * high):.3g}")
