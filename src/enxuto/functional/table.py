"""Table grids: a weight is the index of an entry in a small codebook (weight sharing).

The codebook comes from exact 1-D k-means: a dynamic programme over a fine histogram, then a few exact rounds.
Source: Wang, Song 2011, "Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming", with the
divide and conquer of Grønlund et al. 2017, "Fast exact k-means, k-medians and Bregman divergence clustering in 1D".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function

BINS = 4096  # values beyond this many distinct ones are first put into a histogram
ROUNDS = 20  # of exact refinement on all values
PIECE = 2**14  # values that are summed at once in double precision; the values themselves stay as they are

Floats = NDArray[np.float64]
Values = NDArray[np.floating[Any]]


def fit_codebook(values: Tensor, entries: int, *, zero: bool) -> Tensor:
    """The codebook of least squared error, ascending; with `zero`, one entry is exactly zero.

    Shapes: values [any] -> [at most entries]; fewer entries when there are fewer distinct values.
    Deviation: k-means ignores the zeros and keeps their entry aside (Han et al. 2016, "Deep Compression", section 3,
    keeps pruned weights out of the clustering in the same way).
    """
    wide = values.dtype == torch.float64
    flat: Values = (values.detach() if wide else values.detach().float()).flatten().cpu().numpy()
    ordered = np.sort(flat[flat != 0] if zero else flat)
    if zero:
        centres = np.unique(np.append(_kmeans(ordered, max(1, entries - 1)), 0.0))
        centres = _refine(ordered, centres, fixed_zero=True)
    else:
        centres = _kmeans(ordered, entries)
    return torch.from_numpy(centres).to(values)


def nearest_entries(values: Tensor, codebook: Tensor) -> Tensor:
    """The index of the entry nearest to each value; the codebook must ascend.

    Shapes: values [any], codebook [entries] -> int64 or int32 [any].
    """
    edges = ((codebook[1:].double() + codebook[:-1].double()) / 2).to(codebook.dtype)  # two large entries sum to no infinity
    values, plain = values.detach(), torch.float32
    if type(values) is not Tensor or values.device.type != "cpu" or not values.dtype == edges.dtype == plain:
        return torch.bucketize(values.contiguous(), edges)  # thirty times as slow on a processor
    found = torch.empty(values.shape, dtype=torch.int32)
    _compiled(_above)(values.reshape(-1).numpy(), edges.numpy(), found.view(-1).numpy())
    return found


def shared_values(weight: Tensor, codebook: Tensor) -> Tensor:
    """The nearest entry for each value, with gradients for the values (straight through) and for the entries.

    Shapes: weight [any], codebook [entries], in any order -> as the weight.
    Source: Han, Mao, Dally 2016, "Deep Compression", section 3.3: the gradient of an entry is the sum over its weights.
    """
    shared: Tensor = _Shared.apply(weight, codebook)[0]  # type: ignore[no-untyped-call]
    return shared


class _Shared(Function):
    @staticmethod
    def forward(weight: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        entries = codebook.sort().values
        codes = nearest_entries(weight, entries)
        return entries.index_select(0, codes.view(-1)).view_as(weight), codes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        codebook, codes = ctx.saved_tensors
        sums = torch.zeros_like(codebook).index_add_(0, codes.view(-1), gradient.reshape(-1))
        return gradient, torch.zeros_like(codebook).index_add_(0, codebook.argsort(), sums)


def one_dimensional_kmeans(values: Floats, clusters: int) -> Floats:
    """The cluster centres of least squared error, ascending.

    Shapes: values [n] -> [at most clusters].
    >>> one_dimensional_kmeans(np.array([0.0, 0.1, 5.0, 5.1]), 2)
    array([0.05, 5.05])
    """
    return _kmeans(np.sort(values), clusters)


def _kmeans(ordered: Values, clusters: int) -> Floats:
    """The same of sorted values."""
    if ordered.size == 0:
        return np.zeros(0)
    points, counts = _bins(ordered)
    if points.size <= clusters:
        return points
    centred = points - np.median(points)  # squares of a spread far below the values would drown in rounding
    starts = _compiled(_solve)(centred / np.abs(centred).max(), counts.astype(np.float64), clusters)
    sums = np.add.reduceat(points * counts, starts)
    return _refine(ordered, sums / np.add.reduceat(counts, starts), fixed_zero=False)


def _bins(ordered: Values) -> tuple[Floats, NDArray[np.int64]]:
    """Points that stand for sorted values, and how many each stands for: the values themselves, or the means of bins."""
    new = np.empty(ordered.size, dtype=bool)
    new[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    if np.count_nonzero(new) <= BINS:
        starts = np.flatnonzero(new)
        return ordered[starts].astype(np.float64), np.diff(starts, append=ordered.size)
    del new
    # half of the bins equally wide, half equally full: an outlier then does not leave the rest in one bin
    even = np.linspace(float(ordered[0]), float(ordered[-1]), BINS // 2 + 1)
    edges = np.union1d(even, ordered[np.linspace(0, ordered.size - 1, BINS // 2, dtype=np.int64)])
    counts, sums = np.zeros(edges.size, dtype=np.int64), np.zeros(edges.size)
    for start in range(0, ordered.size, PIECE):
        few = ordered[start : start + PIECE].astype(np.float64)
        index = np.searchsorted(edges, few, side="right") - 1
        counts += np.bincount(index, minlength=edges.size)
        np.add.at(sums, index, few)
    return sums[counts > 0] / counts[counts > 0], counts[counts > 0]


class _Sums:
    """Sums of the first values of a sorted array, in double precision, kept at every PIECE-th."""

    def __init__(self, ordered: Values) -> None:
        self.ordered, self.kept = ordered, [0.0]
        for start in range(0, ordered.size, PIECE):
            self.kept.append(self._on(start, start + PIECE))

    def __call__(self, count: int) -> float:
        """The sum of the first `count` values."""
        return self._on(count // PIECE * PIECE, count)

    def _on(self, start: int, stop: int) -> float:
        few = self.ordered[start:stop].astype(np.float64)
        return float(np.cumsum(np.append(self.kept[start // PIECE], few))[-1])  # one after the other, as in one long sum


def _first_above(ordered: Values, limits: Floats) -> NDArray[np.int64]:
    """Where the values above each limit begin; the limits are rounded down, lest all values be copied in double precision."""
    near = limits.astype(ordered.dtype)
    near = np.where(near > limits, np.nextafter(near, -np.inf, dtype=ordered.dtype), near)
    return np.searchsorted(ordered, near, side="right")


def _refine(ordered: Values, centres: Floats, *, fixed_zero: bool) -> Floats:
    """Lloyd's rounds on sorted values: prefix sums make each round a handful of lookups."""
    sums = _Sums(ordered)
    for _ in range(ROUNDS):
        cuts = _first_above(ordered, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], cuts, [ordered.size]])
        counts = np.diff(bounds)
        totals = np.diff([sums(int(bound)) for bound in bounds])
        means = np.where(counts > 0, totals / np.maximum(counts, 1), centres)
        if fixed_zero:
            means[centres == 0] = 0.0
        if np.array_equal(means, centres):
            break
        centres = np.sort(means)
    return centres


@functools.cache
def _compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """A loop below, compiled at its first call."""
    from enxuto.functional.hot import hot

    made: Callable[..., Any] = hot(loop)
    return made


def _above(values, edges, found):  # type: ignore[no-untyped-def]
    """How many edges each value is above: comparing with all of them in blocks takes less than to search among them."""
    for start in range(0, values.size, 1024):
        few, counts = values[start : start + 1024], found[start : start + 1024]
        counts[:] = 0
        for edge in edges:
            for at in range(few.size):
                counts[at] += np.int32(not (few[at] <= edge))  # what is no number is above all


def _solve(points, counts, clusters):  # type: ignore[no-untyped-def]
    n = points.size
    weight = np.zeros(n + 1)
    total = np.zeros(n + 1)
    square = np.zeros(n + 1)
    for i in range(n):
        weight[i + 1] = weight[i] + counts[i]
        total[i + 1] = total[i] + counts[i] * points[i]
        square[i + 1] = square[i] + counts[i] * points[i] * points[i]
    cost = np.full((clusters + 1, n + 1), np.inf)
    first = np.zeros((clusters + 1, n + 1), np.int64)
    cost[0, 0] = 0.0
    stack = np.empty((4 * 64 + 4, 4), np.int64)
    for k in range(1, clusters + 1):
        depth = 1
        stack[0] = (k, n, k - 1, n - 1)
        while depth > 0:
            depth -= 1
            low, high, left, right = stack[depth]
            if low > high:
                continue
            middle = (low + high) // 2
            best, at = np.inf, left
            for j in range(left, min(right, middle - 1) + 1):
                mass = weight[middle] - weight[j]
                mean = total[middle] - total[j]
                here = cost[k - 1, j] + (square[middle] - square[j]) - mean * mean / mass
                if here < best:
                    best, at = here, j
            cost[k, middle], first[k, middle] = best, at
            stack[depth] = (low, middle - 1, left, at)
            stack[depth + 1] = (middle + 1, high, at, right)
            depth += 2
    starts = np.zeros(clusters, np.int64)
    end = n
    for k in range(clusters, 0, -1):
        starts[k - 1] = first[k, end]
        end = starts[k - 1]
    return starts
