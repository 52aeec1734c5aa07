"""Which ranks a layer may get: what each costs, and what it loses of the layer's outputs, or of its weights without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import attempt, evaluating
from enxuto.errors import RangeError
from enxuto.evidence.moments import MomentsOf
from enxuto.evidence.samples import moments_bytes
from enxuto.functional.lowrank import damped, lost_by_rank
from enxuto.functional.tucker import lost_by_ranks
from enxuto.sites import Site
from enxuto.task import Task

Form = Literal["auto", "svd", "tucker"]
Least = Literal["outputs", "weights"]
Ranks = tuple[int, ...]
"""() of a layer as it is, (rank,) of two thin ones, (in_rank, rank) of three."""

IN_RANKS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Of a convolution's inputs: how many channels may be left of them. Between two of these little changes."""


@dataclass(frozen=True)
class Shape:
    """A layer's size: of how many outputs, inputs and places of its kernel its weight is, and at how many places of a batch it
    reads inputs and gives outputs."""

    out: int
    inputs: int
    kernel: int
    places_in: int = 1
    places_out: int = 1

    def weights(self, ranks: Ranks) -> int:
        """How many weights a layer of these ranks has."""
        return sum(self._parts(ranks))

    def macs(self, ranks: Ranks) -> int:
        """How many multiply-accumulates the batch takes with these ranks."""
        first, *others = self._parts(ranks)
        return first * (self.places_in if len(ranks) == 2 else self.places_out) + sum(others) * self.places_out

    def grows(self, ranks: Ranks) -> bool:
        """True where these ranks save no weights, or cost more multiply-accumulates."""
        return bool(ranks) and (self.weights(ranks) >= self.weights(()) or self.macs(ranks) > self.macs(()))

    def _parts(self, ranks: Ranks) -> tuple[int, ...]:
        if not ranks:
            return (self.out * self.inputs * self.kernel,)
        *few, rank = ranks
        if few:
            return few[0] * self.inputs, rank * few[0] * self.kernel, self.out * rank
        return rank * self.inputs * self.kernel, self.out * rank


@dataclass(frozen=True)
class Offer:
    """Ranks, and which fraction of the summed squares of the outputs is lost with them."""

    ranks: Ranks
    lost: float


def offers(weight: Tensor, shape: Shape, form: Form, square: Tensor | None) -> list[Offer]:
    """The ranks that a layer with this weight may get, as it is first. A layer of zeros loses nothing at rank 1.

    Shapes: weight [out, in, ...], square [in * ..., in * ...].
    """
    matrix = weight.flatten(1)
    three = form != "svd" and shape.kernel > 1
    found = [Offer((), 0.0)]
    if form != "tucker" or not three:
        lost = lost_by_rank(matrix, square).tolist()
        found += [Offer((rank,), _part(lost[rank], lost[0])) for rank in range(1, len(lost))]
    if three:
        few = sorted({max(1, round(shape.inputs * part)) for part in IN_RANKS})
        for in_rank, lost in zip(few, lost_by_ranks(weight.flatten(2), few, square).tolist(), strict=True):
            found += [Offer((in_rank, rank), _part(lost[rank], lost[0])) for rank in range(1, len(lost))]
    return found


def _part(lost: float, whole: float) -> float:
    return lost / whole if whole > 0 else 0.0


class SquaresOf:
    """The second moments by which a layer's outputs are weighed, in the order of the layers; None where weights alone count, and
    for those of which `missing` has the reason."""

    def __init__(self, model: nn.Module, task: Task, weights: Sequence[Site], least: Least) -> None:
        self.moments = MomentsOf(model, task.calibration, weights if least == "outputs" else (), moments_bytes(task), task.seed)

    def __call__(self, weight: Site) -> Tensor | None:
        """Damped second moments [in, in]."""
        found = self.moments(weight.key)
        return damped(found[0].square[0]) if found else None

    @property
    def missing(self) -> Mapping[str, str]:
        """The weights without moments, and why."""
        return self.moments.missing


def shapes(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> dict[str, Shape]:
    """The size of each of these layers of the model, at a batch; those that do not run count as run at one place."""
    places: dict[str, list[tuple[int, int]]] = {path: [] for path in layers}
    hooks = [layer.register_forward_hook(_counter(places[path]), with_kwargs=True) for path, layer in layers.items()]
    try:
        with evaluating(model):
            attempt(model, batch, "its own sample inputs")
    finally:
        for hook in hooks:
            hook.remove()
    return {path: _shape(layer, places[path] or [(1, 1)]) for path, layer in layers.items()}


def _shape(layer: nn.Module, places: Sequence[tuple[int, int]]) -> Shape:
    out, inputs, *kernel = Site("", "weight", layer).shape
    return Shape(out, inputs, math.prod(kernel), *map(sum, zip(*places, strict=True)))


def _counter(places: list[tuple[int, int]]) -> Callable[..., None]:
    def count(layer: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor], outputs: Tensor) -> None:
        given = next(iter((*args, *named.values())))
        out, inputs = Site("", "weight", layer).shape[:2]
        places.append((given.numel() // inputs, outputs.numel() // out))

    return count


def check_ranks(form: str, least: str) -> None:
    """Raises: RangeError for a form that is not known, or an error that nobody measures."""
    if form not in get_args(Form):
        raise RangeError(f"form={form!r} is not known; use one of {', '.join(map(repr, get_args(Form)))}.")
    if least not in get_args(Least):
        raise RangeError(f"least={least!r} is not known; use one of {', '.join(map(repr, get_args(Least)))}.")
