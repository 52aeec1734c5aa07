"""How the inputs of layers are distributed: counts that grow with what is seen, and the range of an 8-bit grid they speak for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calibrate import value_range, watch_inputs
from enxuto.errors import RangeError
from enxuto.evidence.products import Product, watch
from enxuto.functional.affine import activation_grid
from enxuto.functional.ranges import least_squares_range, percentile_range
from enxuto.layers.activations import ActivationGrid
from enxuto.surgery import to_float

Ranges = Literal["minmax", "percentile", "mse", "best"]
BINS = 4096
CLEARLY = 2.0  # times less error is what cutting must give: what is cut adds up over the layers, what is rounded averages out

Span = tuple[float, float]


def check_ranges(ranges: str) -> None:
    """Raises: RangeError when the way to choose ranges is not known."""
    if ranges not in get_args(Ranges):
        raise RangeError(f"ranges={ranges!r} is not known; use one of {', '.join(map(repr, get_args(Ranges)))}.")


class Histogram:
    """Counts of the values that are not zero, in bins from -limit to limit; the limit doubles where a value lies beyond.

    `low` and `high` are the ends of all values, zeros too. Masks do not count (`calibrate.value_range`).
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.limit = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def add(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Counts values, each once or `weights` times. Shapes: values [...], weights the same or broadcast to it."""
        low, high = value_range(values)
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = values.detach().flatten().float()
        counted = (flat != 0) & (flat >= low) & (flat <= high)
        shares = None if weights is None else weights.expand(values.shape).flatten()[counted].double().cpu()
        flat = flat[counted].cpu()
        if not len(flat):
            return
        self._reach(float(flat.abs().max()))
        bins = ((flat / self.limit + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(bins, shares, minlength=BINS)

    def _reach(self, size: float) -> None:
        self.limit = self.limit or size
        while size > self.limit:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([pairs.new_zeros(BINS // 4), pairs, pairs.new_zeros(BINS // 4)])
            self.limit *= 2


def minmax(seen: Histogram) -> Span:
    """All that was seen."""
    return seen.low, seen.high


def percentile(seen: Histogram) -> Span:
    """Nearly all of it."""
    low, high = percentile_range(seen.counts, seen.limit)
    return max(low, seen.low), min(high, seen.high)


def mse(seen: Histogram) -> Span:
    """What costs the values least squared error."""
    return least_squares_range(seen.counts, seen.limit, seen.low, seen.high)


WAYS: Mapping[str, Callable[[Histogram], Span]] = {"minmax": minmax, "percentile": percentile, "mse": mse}


def fitted_ranges(model: nn.Module, batches: Iterable[Batch], ranges: Ranges, paths: Collection[str]) -> dict[str, Span]:
    """The range of the inputs of each layer at these paths, by path; layers that did not run are absent.

    The layers are Linear or convolutions. "best" tries all ways, and the least squares with each channel counted as much as the
    layer reads of it; it looks at the batches twice, and the second time each layer runs on its inputs as each range would round
    them. Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    if ranges == "best":
        return {path: best for path, (_, best) in _whole_and_best(model, batches, paths).items()}
    seen: dict[str, Histogram] = {}

    def count(path: str, given: Tensor) -> None:
        if path in paths:
            seen.setdefault(path, Histogram()).add(given)

    watch_inputs(to_float(model), batches, count)
    return {path: WAYS[ranges](alike) for path, alike in seen.items()}


def clipped_ranges(model: nn.Module, batches: Iterable[Batch], paths: Collection[str]) -> dict[str, Span]:
    """What `fitted_ranges` calls best, of the layers where that is not all that was seen."""
    return {path: best for path, (whole, best) in _whole_and_best(model, batches, paths).items() if best != whole}


def _whole_and_best(model: nn.Module, batches: Iterable[Batch], paths: Collection[str]) -> dict[str, tuple[Span, Span]]:
    """All that was seen of the inputs of each layer, and the range with which its products move least."""
    plain = to_float(model)
    seen: dict[str, tuple[Histogram, Histogram]] = {}

    def count(path: str, given: Tensor) -> None:
        if path in paths:
            alike, read = seen.setdefault(path, (Histogram(), Histogram()))
            alike.add(given)
            read.add(given, _read(plain.get_submodule(path)))

    watch_inputs(plain, batches, count)
    spans = {
        path: tuple(dict.fromkeys([*(way(alike) for way in WAYS.values()), mse(read)])) for path, (alike, read) in seen.items()
    }
    errors = _errors(plain, batches, spans)
    return {path: (each[0], _better(each, [errors[path, span] for span in each])) for path, each in spans.items()}


def _read(layer: nn.Module) -> Tensor:
    """How much of each input channel a layer reads: the sum of its squared weights. Shapes: [in] or [in, 1, ...]."""
    weight = layer.weight.detach().double()  # type: ignore[operator]
    groups = int(getattr(layer, "groups", 1))
    sums = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).square().sum((1, 3)).flatten()
    return sums.reshape(-1, *[1] * (weight.ndim - 2))


def _better(spans: Sequence[Span], errors: Sequence[float]) -> Span:
    """The first, which cuts nothing, unless another is clearly better."""
    least = min(range(len(spans)), key=errors.__getitem__)
    return spans[least] if CLEARLY * errors[least] < errors[0] else spans[0]


def _errors(model: nn.Module, batches: Iterable[Batch], spans: Mapping[str, Sequence[Span]]) -> dict[tuple[str, Span], float]:
    """How far the products of each layer move, squared, by each of its ranges."""
    errors = {(path, span): 0.0 for path, each in spans.items() for span in each}

    def compare(path: str, given: Tensor) -> None:
        layer = model.get_submodule(path)
        tried = spans.get(path, ())
        before = layer.forward(given) if tried else given
        for span in tried:
            after = layer.forward(ActivationGrid(*activation_grid(*span)).to(given.device)(given))
            errors[path, span] += float((after - before).double().square().sum())

    watch_inputs(model, batches, compare)
    return errors


def product_ranges(model: nn.Module, batches: Iterable[Batch], keys: Sequence[str]) -> dict[str, Span]:
    """The least and the largest input that each of these weights multiplies, whoever reads it; by the key of the weight.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    spans: dict[str, Span] = {}

    def see(product: Product) -> None:
        low, high = value_range(product.inputs(torch.arange(product.count)))
        before = spans.get(product.key, (low, high))
        spans[product.key] = (min(before[0], low), max(before[1], high))

    watch(model, batches, keys, see)
    return spans
