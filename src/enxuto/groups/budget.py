"""Which units go: from scores, a goal and what each unit costs, to numbers of units for each group."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import nn

from enxuto.batches import Batch
from enxuto.cut import Group
from enxuto.groups.scores import FloatArray
from enxuto.macs import count_macs


class MacModel:
    """The multiply-accumulates of a model after some units of its groups are gone, without cutting it."""

    def __init__(self, model: nn.Module, batch: Batch, groups: Sequence[Group]) -> None:
        self.by_layer = count_macs(model, batch)
        self.before = sum(self.by_layer.values())
        shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        for group in groups:
            for part in group.slices:
                tensor = getattr(model.get_submodule(part.path), part.name)
                if getattr(tensor, "ndim", 0) > 1 and self.by_layer.get(part.path):
                    shapes[part.path, part.name] = tuple(tensor.shape)
        weights = {path: sum(p.numel() for p in model.get_submodule(path).parameters() if p.ndim > 1) for path, _ in shapes}
        self._positions = {key: self.by_layer[key[0]] / weights[key[0]] for key in shapes}
        self._shapes = shapes
        self._rest = self.before - sum(self._positions[key] * np.prod(shape) for key, shape in shapes.items())
        self._owned = [
            {(part.path, part.name, part.dim): int((part.unit_of == 0).sum()) for part in group.slices} for group in groups
        ]

    def after(self, counts: Sequence[int]) -> float:
        """Multiply-accumulates left when `counts[g]` units of group g are gone."""
        gone: dict[tuple[str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for owned, count in zip(self._owned, counts, strict=True):
            for (path, name, dim), each in owned.items():
                gone[path, name][dim] += each * count
        left = self._rest
        for key, shape in self._shapes.items():
            left += self._positions[key] * np.prod([size - gone[key][dim] for dim, size in enumerate(shape)])
        return float(left)


def allowed_counts(group: Group, multiple_of: int) -> list[int]:
    """How many units may go, ascending from 0: at least one stays, and what stays of the first layer is a multiple."""
    lead = next((part for part in group.slices if part.writes), group.slices[0])
    recurrent = (part for part in group.slices if part.reads and part.path == lead.path and part.name != lead.name)
    lead = next(recurrent, lead)  # the rows of a recurrent layer are gates times units, its columns the units themselves
    each = int((lead.unit_of == 0).sum())
    counts = [count for count in range(1, group.size) if (len(lead.unit_of) - count * each) % multiple_of == 0]
    return [0, *counts]


@dataclass(frozen=True)
class Order:
    """The units of one group, those that may go first in front, and how many may go."""

    units: tuple[int, ...]
    scores: tuple[float, ...]  # of the units in this order
    counts: tuple[int, ...]
    free: int = field(default=0)  # how many of the counts cost nothing: their units are zero

    def fitting(self, count: int) -> int:
        """The largest allowed number of units that is not above `count`."""
        return max(each for each in self.counts if each <= count)


def order(group: Group, scores: FloatArray, zeros: frozenset[int], multiple_of: int) -> Order:
    """Zero units first, then by score, then by position."""
    scores = scores.copy()
    scores[list(zeros)] = 0.0
    units = sorted(range(group.size), key=lambda unit: (unit not in zeros, scores[unit], unit))
    counts = tuple(allowed_counts(group, multiple_of))
    made = Order(tuple(units), tuple(float(scores[unit]) for unit in units), counts)
    return Order(made.units, made.scores, made.counts, made.fitting(len(zeros)))


def cheapest(orders: Sequence[Order], model: MacModel, goal: float, *, per_mac: bool) -> list[int]:
    """How many units of each group go until at most `goal` multiply-accumulates are left.

    Units go in the order of their scores, or with `per_mac` of score for each multiply-accumulate they save; the last ones
    stay after all where the goal is met without them. If it is out of reach, all go that may.
    """
    steps = _steps(orders, model, per_mac)

    def taken(number: int) -> list[int]:
        result = [each.free for each in orders]
        for _, index, _, high in steps[:number]:
            result[index] = max(result[index], high)
        return result

    number = bisect_left(range(len(steps)), True, key=lambda number: model.after(taken(number)) <= goal)
    counts = taken(number)
    for _, index, low, high in reversed(steps[:number]):
        spared = [*counts[:index], low, *counts[index + 1 :]]
        if counts[index] == high and model.after(spared) <= goal:
            counts = spared
    return counts


def _steps(orders: Sequence[Order], model: MacModel, per_mac: bool) -> list[tuple[float, int, int, int]]:
    """Every single cut that may be made, best first: its price, the group, and its number of lost units before and after."""
    steps = []
    for index, each in enumerate(orders):
        one = [int(other == index) for other in range(len(orders))]
        saved = max(model.before - model.after(one), 1.0) if per_mac else 1.0
        for low, high in pairwise(each.counts):
            if low >= each.free:
                steps.append((float(np.mean(each.scores[low:high])) / saved, index, low, high))
    return sorted(steps)
