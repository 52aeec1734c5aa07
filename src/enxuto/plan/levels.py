"""The steps that searches are made of: a level of pruning with its training, and the densities of the levels."""

from __future__ import annotations

from enxuto.steps.prune import Prune
from enxuto.steps.recover import Recover
from enxuto.task import Step

DENSER, LEVEL = 0.5, 0.6  # fraction of weights left after the first level, and what each further level leaves of it
SPARSEST = 0.004
LEVEL_RATE = 2e-3  # LeNet-300-100 at 97 % zeros lost 0.6 points on validation, and 1.3 at 1e-3 (3 epochs a level)
FINISH_RATE = 3e-4
NEAR = 1.2  # a level that leaves hardly more than the last one is left out


def level(density: float, epochs: float) -> tuple[Step, ...]:
    """Fewer weights, and training to do without those that went, where there is time for it."""
    return (Prune(round(1 - density, 4)), *trained(epochs, LEVEL_RATE))


def trained(epochs: float, rate: float = Recover.learning_rate) -> tuple[Step, ...]:
    """Training, or nothing where there is no time for any."""
    return (Recover(epochs=epochs, learning_rate=rate),) if epochs else ()


def first_density(density: float) -> float:
    """The first level of a network in which so many weights are left: levels that it had before are passed over."""
    first = DENSER
    while first >= 0.95 * density:
        first *= LEVEL
    return first


def level_densities(density: float, wanted: float) -> tuple[float, ...]:
    """The levels from one density down to another, which is the last; none when nothing has to go.

    >>> level_densities(1.0, 0.1)
    (0.5, 0.3, 0.18, 0.1)
    """
    if wanted >= density:
        return ()
    found, step = [], first_density(density)
    while step > NEAR * wanted:
        found.append(round(step, 4))
        step *= LEVEL
    return (*found, wanted)
