"""Sharing a budget out: which of its offers each layer takes, so that what all lose together is least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
