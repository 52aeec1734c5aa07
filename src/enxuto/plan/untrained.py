"""Recipes without training: layers made thin by the data, and one tolerance for all bits; a generator told what they gave.

Fewer, finer numbers are often smaller than many coarse ones: how thin pays is found by trying, thinner each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

from enxuto.plan.history import Trial
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
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
ZEROS = 0.3  # of the weights, the others refit: 2 to 13 % smaller files on five of the zoo's networks
IDLE = 2  # sizes in a row that may bring nothing


@dataclass(frozen=True)
class Wish:
    """What is wanted of a trial: whether it `does`, whether the next tolerance is to be `coarser` than its own, and the `cost`
    of one that does; `enough` ends the halving."""

    does: Callable[[Trial], bool]
    coarser: Callable[[Trial], bool]
    cost: Callable[[Trial], float]
    enough: Callable[[Trial], bool]


def untrained(prefix: Recipe, wish: Wish) -> Tries:
    """Whole layers first, then ever thinner ones, each with the tolerance that is best for it, until that brings nothing; and the
    best of them with some zeros."""
    best, idle, size, around, halvings = math.inf, 0, 1.0, TOLERANCES, HALVINGS
    found: Recipe | None = None
    while idle < IDLE and size >= THINNEST:
        steps = prefix if size == 1 else (*prefix, Factorize(size=round(size, 3)))
        cost, tolerance = yield from _halved(steps, wish, around, halvings)
        if tolerance is None:
            break  # not to be applied, and thinner layers neither
        idle = 0 if cost < best else idle + 1
        if cost < best or math.isinf(best):
            found, around = steps, (tolerance * AROUND[0], min(tolerance * AROUND[1], COARSEST))
        best, halvings = min(best, cost), FEWER_HALVINGS
        size = THIN if size == 1 else size * THINNER
    if found is not None:
        yield from _halved((*found, Prune(ZEROS, scores="wanda", refit=True)), wish, around, FEWER_HALVINGS)


def _halved(
    prefix: Recipe, wish: Wish, between: tuple[float, float], halvings: int
) -> Generator[Recipe, Trial | None, tuple[float, float | None]]:
    """The least cost among tolerances that do, and the last that did; None where the recipe could not be applied."""
    low, high = between
    cost, found = math.inf, None
    for _ in range(halvings):
        middle = halfway(low, high)
        trial = yield (*prefix, tolerated(middle))
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
