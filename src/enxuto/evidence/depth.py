"""How errors grow along the depth: each layer's output in a changed network beside that in the original, on the same batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, leaves
from enxuto.calls import attempt, evaluating, repeatable
from enxuto.evidence.samples import in_parts


@dataclass
class Grown:
    """Sums of squares of one layer's output: of the original's, of what differs, and of what the layer itself adds."""

    size: float = 0.0
    differs: float = 0.0
    adds: float = 0.0
    largest: float = 0.0

    @property
    def error(self) -> float:
        """Relative to the output's size; 0 where both are zero."""
        return _relative(self.differs, self.size)

    @property
    def own(self) -> float:
        """The same of what the layer itself adds, on the inputs of the original."""
        return _relative(self.adds, self.size)


def grown(model: nn.Module, changed: nn.Module, batches: Iterable[Batch], paths: Iterable[str]) -> dict[str, Grown]:
    """The figures of these layers, in the order in which they run; those that did not run, or otherwise, are absent.

    Batches come in such parts that the outputs of all layers take no more than the weights.
    Raises: TaskError when a network fails on a batch.
    """
    found: dict[str, Grown] = {}
    waiting: dict[str, deque[Tensor]] = {}
    few = [*in_parts(model, batches)]  # views, made before anybody looks
    hooks = []
    for path in paths:
        was, now = model.get_submodule(path), changed.get_submodule(path)
        hooks.append(was.register_forward_hook(_before(path, now, found, waiting), with_kwargs=True))
        hooks.append(now.register_forward_hook(_after(path, found, waiting)))
    try:
        with evaluating(model), evaluating(changed):
            for place, batch in few:
                for network in (model, changed):
                    with repeatable(network):
                        attempt(network, batch, place, model)
                waiting.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _before(
    path: str, twin: nn.Module, found: dict[str, Grown], waiting: dict[str, deque[Tensor]]
) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], None]:
    def see(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        values = _first(output)
        if values is None:
            return
        figures = found.setdefault(path, Grown())
        figures.size += _square(values)
        figures.largest = max(figures.largest, float(values.abs().max()) if values.numel() else 0.0)
        with torch.random.fork_rng(devices=[]):
            alone = _first(twin.forward(*args, **kwargs))
        figures.adds += _square(alone - values) if alone is not None and alone.shape == values.shape else math.inf
        waiting.setdefault(path, deque()).append(values)

    return see


def _after(
    path: str, found: dict[str, Grown], waiting: dict[str, deque[Tensor]]
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        values = _first(output)
        if values is None or not waiting.get(path):
            return
        before = waiting[path].popleft()
        found[path].differs += _square(values - before) if values.shape == before.shape else math.inf

    return see


def _first(output: Any) -> Tensor | None:
    """The first tensor of floats that a layer gave."""
    return next((each.detach() for each in leaves(output) if each.is_floating_point()), None)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def _relative(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0 if not part else math.inf
