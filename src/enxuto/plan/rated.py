"""Recipes that train for the bytes of the file: what a bit is worth is halved down to, each a training from the original."""

from __future__ import annotations

import math
from collections.abc import Generator

from enxuto.plan.history import Trial
from enxuto.plan.untrained import Recipe, Wish
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.task import Step

WORTH = (1e-7, 1e-4)
"""Of a bit, in the loss: from next to nothing to the ruin of a network."""
HALVINGS = 5
AROUND = 2.0  # times what was best in a shorter training, either way: where it is looked for in a longer one
FEWER_HALVINGS = 2
TEACHER, TEMPERATURE = 0.9, 1.0  # the original's answers as they are, a little of the labels
LEARNING_RATE = 2e-3
FINE = Quantize(bits=8, per="tensor", fit="absmax", biases=6)
"""Where a training for size begins: next to nothing is lost, and steps can only widen."""


def rated(prefix: Recipe, epochs: float, wish: Wish, worth: float | None = None) -> Generator[Recipe, Trial | None, float | None]:
    """What a bit may be worth, halved: around what did in a shorter training, if there was one. Returns the most that does."""
    low, high = WORTH if worth is None else (worth / AROUND, worth * AROUND)
    found, halvings = None, HALVINGS if worth is None else FEWER_HALVINGS
    for _ in range(halvings if epochs else 0):
        middle = float(f"{math.sqrt(low * high):.3g}")
        trial = yield (*prefix, *priced(epochs, middle))
        if trial is None:
            return found
        if wish.does(trial):
            found = middle
        low, high = (middle, high) if wish.coarser(trial) else (low, middle)
    return found


def priced(epochs: float, rate: float | str) -> tuple[Step, ...]:
    """One training for the bytes of the file."""
    return (
        FINE,
        Recover(epochs=epochs, learning_rate=LEARNING_RATE, teacher=TEACHER, temperature=TEMPERATURE, rate=rate),
    )
