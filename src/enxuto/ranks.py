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
from enxuto.forms import WHOLE, Form, Ranks, Shape, losses
from enxuto.functional.lowrank import damped
from enxuto.sites import Site
from enxuto.task import Task

Least = Literal["outputs", "weights"]


@dataclass(frozen=True)
class Offer:
    """Ranks, and which fraction of the summed squares of the outputs is lost with them."""

    ranks: Ranks
    lost: float


def offers(weight: Tensor, shape: Shape, form: Form, square: Tensor | None) -> list[Offer]:
    """The ranks that a layer with this weight may get, as it is first. A layer of zeros loses nothing at rank 1.

    Shapes: weight [out, in, ...], square [in * ..., in * ...].
    """
    return [Offer(WHOLE, 0.0), *(Offer(ranks, lost) for ranks, lost in losses(weight, shape, form, square))]


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
    read, given = map(sum, zip(*places, strict=True))
    return Shape(out, inputs, math.prod(kernel), read, given, linear=isinstance(layer, nn.Linear))


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
