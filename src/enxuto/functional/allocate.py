"""Sharing a budget out: which of its offers each layer takes, so that what all lose together is least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Offer = tuple[float, float]
"""What it costs, and what is lost."""


def cheapest_steps(offers: Sequence[Sequence[Offer]]) -> Iterator[tuple[list[int], float, float]]:
    """The places of the offers that the layers take, what these cost and lose together: each layer's that loses least to begin
    with, then one step after the other, that of the least loss per cost saved first. Stop where a budget is kept.

    Of every layer only offers on the lower convex hull are taken, where each step saves at a higher price than the one before.
    Source: Shoham, Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers".
    >>> [each for each in cheapest_steps([[(9, 0.0), (5, 1.0)], [(9, 0.0), (2, 0.5)]])]
    [([0, 0], 18, 0.0), ([0, 1], 11, 0.5), ([1, 1], 7, 1.5)]
    """
    hulls = [lower_hull(each) for each in offers]
    steps = sorted(
        (_price(each[hull[at - 1]], each[hull[at]]), layer, hull[at])
        for layer, (each, hull) in enumerate(zip(offers, hulls, strict=True))
        for at in range(1, len(hull))
    )
    taken = [hull[0] for hull in hulls]
    cost, lost = (sum(each[place][part] for each, place in zip(offers, taken, strict=True)) for part in (0, 1))
    yield [*taken], cost, lost
    for _, layer, place in steps:
        before, after = offers[layer][taken[layer]], offers[layer][place]
        cost, lost = cost + after[0] - before[0], lost + after[1] - before[1]
        taken[layer] = place
        yield [*taken], cost, lost


def lower_hull(offers: Sequence[Offer]) -> list[int]:
    """The places of the offers on the lower convex hull, from the one that loses least to the one that costs least.

    >>> lower_hull([(9, 0.0), (6, 4.0), (5, 1.0), (1, 8.0)])
    [0, 2, 3]
    """
    hull: list[int] = []
    for place in sorted(range(len(offers)), key=lambda at: (offers[at][1], offers[at][0])):
        cost, loss = offers[place]
        if hull and cost >= offers[hull[-1]][0]:
            continue
        while len(hull) > 1 and _price(offers[hull[-2]], offers[hull[-1]]) >= _price(offers[hull[-1]], (cost, loss)):
            hull.pop()
        hull.append(place)
    return hull


def _price(before: Offer, after: Offer) -> float:
    return (after[1] - before[1]) / (before[0] - after[0])


def knapsack(offers: Sequence[Sequence[Offer]], limit: float, units: int = 1 << 16) -> list[int] | None:
    """The places of one offer a layer that together lose least within the limit; None where not even the least costs fit.

    Costs above a layer's least count in `units` parts of what is left of the limit: rounded down or to the nearest, if what is
    found fits nevertheless, or up, when it always does. Offers off the hull, which no price buys, come in here.
    Source: Dudzinski, Walukiewicz 1987, "Exact methods for the knapsack problem and its generalizations", by multiple choice.
    >>> knapsack([[(9, 0.0), (5, 1.0)], [(9, 0.0), (7, 0.4), (2, 0.5)]], limit=12)
    [0, 2]
    """
    least = [min(cost for cost, _ in layer) for layer in offers]
    left = limit - sum(least)
    if left < 0:
        return None
    more = [[cost - low for cost, _ in layer] for layer, low in zip(offers, least, strict=True)]
    found = []
    for rounded in (math.floor, round, math.ceil):
        spent = [[rounded(each * (units / left)) if each else 0 for each in layer] if left else layer for layer in more]
        taken = _filled([[lost for _, lost in layer] for layer in offers], spent, units if left else 0)
        if sum(layer[place] for layer, place in zip(more, taken, strict=True)) <= left:
            found.append((sum(layer[place][1] for layer, place in zip(offers, taken, strict=True)), taken))
    return min(found)[1] if found else [layer.index(0) for layer in more]


def _filled(losses: Sequence[Sequence[float]], spent: Sequence[Sequence[float]], units: int) -> list[int]:
    """One place a layer, so that no more units are spent than there are and least is lost; one of each layer spends none."""
    best = np.zeros(units + 1)  # the least loss of the layers so far, by the units that may be spent
    chosen = []
    for lost, parts in zip(losses, spent, strict=True):
        found, places = np.full(units + 1, np.inf), np.zeros(units + 1, np.int32)
        for place, each in enumerate(parts):
            if each <= units:
                start = int(each)
                candidate = best[: units + 1 - start] + lost[place]
                better = candidate < found[start:]
                found[start:][better], places[start:][better] = candidate[better], place
        best = found
        chosen.append(places)
    at, taken = units, []
    for parts, places in zip(reversed(spent), reversed(chosen), strict=True):
        taken.append(int(places[at]))
        at -= int(parts[taken[-1]])
    return taken[::-1]
