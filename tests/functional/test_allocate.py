"""Sharing a budget out, against every way to share it out."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.functional.allocate import cheapest_steps, lower_hull

law = settings(deadline=None, max_examples=40, derandomize=True)
OFFERS = st.lists(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30).map(float)), min_size=1, max_size=5), min_size=1, max_size=4
)


@law
@given(OFFERS)
def test_no_choice_costs_as_little_and_loses_less_than_a_step(offers):
    for taken, cost, lost in cheapest_steps(offers):
        chosen = [each[place] for each, place in zip(offers, taken, strict=True)]
        assert (cost, lost) == (sum(c for c, _ in chosen), sum(x for _, x in chosen))
        for other in itertools.product(*offers):
            assert sum(c for c, _ in other) > cost or sum(x for _, x in other) >= lost - 1e-9


@law
@given(OFFERS)
def test_steps_cost_less_and_lose_more_until_nothing_is_cheaper(offers):
    steps = list(cheapest_steps(offers))
    for (_, cost, lost), (_, other, more) in itertools.pairwise(steps):
        assert other < cost
        assert more > lost
    assert steps[-1][1] == sum(min(c for c, _ in each) for each in offers)
    assert steps[0][2] == sum(min(x for _, x in each) for each in offers)


def test_what_lies_above_the_hull_is_never_taken():
    assert lower_hull([(10, 0.0), (9, 5.0), (1, 6.0)]) == [0, 2]
    assert lower_hull([(10, 0.0), (4, 0.0)]) == [1]
