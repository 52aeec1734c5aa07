"""What a bit is worth: found by halving, and nearer in longer trainings; played without a network."""

from __future__ import annotations

import math

import pytest

import enxuto as ex
from enxuto.plan.history import Trial
from enxuto.plan.rated import AROUND, FEWER_HALVINGS, HALVINGS, WORTH, rated
from enxuto.plan.search import next_of
from enxuto.plan.untrained import Tries, Wish

WISH = Wish(lambda t: t.drop <= 0.005, lambda t: t.drop <= 0.005, lambda t: t.file_bytes, lambda t: False)


def play(most: float, worth: float | None = None) -> tuple[list[float], float | None]:
    """The rates that were tried where those up to `most` lose little enough, and what was found."""
    found: list[float | None] = []
    tried: list[float] = []

    def family() -> Tries:
        found.append((yield from rated((ex.Fold(),), 2.0, WISH, worth)))

    recipes, trial = family(), None
    while (recipe := next_of(recipes, trial)) is not None:
        [recover] = [step for step in recipe if isinstance(step, ex.Recover)]
        assert recipe[0] == ex.Fold()
        assert recover.epochs == 2.0
        assert isinstance(recover.rate, float)
        tried.append(recover.rate)
        trial = Trial(0.0, "", 1000, 0.0, False, "", 0.0 if recover.rate <= most else 0.1)
    return tried, found[0]


@pytest.mark.parametrize("most", [1e-6, 2e-5])
def test_the_most_that_a_bit_may_be_worth_is_found(most: float) -> None:
    tried, found = play(most)
    assert len(tried) == HALVINGS
    assert found is not None
    width = (WORTH[1] / WORTH[0]) ** (0.5**HALVINGS)
    assert most / width <= found <= most


def test_a_longer_training_looks_near_it() -> None:
    tried, found = play(2.4e-6, 2e-6)
    assert len(tried) == FEWER_HALVINGS
    assert all(2e-6 / AROUND < rate < 2e-6 * AROUND for rate in tried)
    assert found == tried[0]


def test_a_network_that_no_rate_suits_has_none() -> None:
    tried, found = play(0.0)
    assert found is None
    assert tried == sorted(tried, reverse=True)
    assert math.isclose(tried[0], math.sqrt(WORTH[0] * WORTH[1]), rel_tol=0.01)


def test_one_that_takes_no_such_step_is_left_at_once() -> None:
    recipes = rated((), 1.0, WISH)
    next(recipes)
    with pytest.raises(StopIteration):
        recipes.send(None)
