"""Sharing a budget out, against every way to share it out."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.functional.allocate import cheapest_steps, knapsack, lower_hull

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


@law
@given(OFFERS, st.floats(0, 1))
def test_a_knapsack_is_the_best_of_all_choices_that_fit(offers, part):
    least, most = (sum(end(c for c, _ in each) for each in offers) for end in (min, max))
    limit = least + round(part * (most - least))
    found = knapsack(offers, limit, units=limit - least or 1)  # costs are whole, so that no part is rounded up
    chosen = [each[place] for each, place in zip(offers, found, strict=True)]
    assert sum(c for c, _ in chosen) <= limit
    fits = [other for other in itertools.product(*offers) if sum(c for c, _ in other) <= limit]
    assert sum(x for _, x in chosen) == min(sum(x for _, x in other) for other in fits)
    assert knapsack(offers, least - 1) is None
    for units in (1, 7):
        rough = [each[place] for each, place in zip(offers, knapsack(offers, limit, units), strict=True)]
        assert sum(c for c, _ in rough) <= limit


def test_what_lies_above_the_hull_is_never_taken():
    assert lower_hull([(10, 0.0), (9, 5.0), (1, 6.0)]) == [0, 2]
    assert lower_hull([(10, 0.0), (4, 0.0)]) == [1]
