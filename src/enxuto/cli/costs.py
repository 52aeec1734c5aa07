"""What each layer of a network costs: bytes in memory, parameters, zeros, multiply-accumulates and time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import call, evaluating
from enxuto.layers.coded import plain_class, weight_names
from enxuto.macs import count_macs
from enxuto.sizes import tensor_bytes
from enxuto.surgery import to_float

WARM_UPS = 3
LEAST_REPEATS, MOST_REPEATS, LONGEST_S = 5, 50, 2.0
OTHER = "(everything else)"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One layer: kind, parameters and bytes in memory, the fraction of its parameters that are zero, MACs and time."""

    path: str
    kind: str
    parameters: int
    bytes: int
    sparsity: float
    macs: int  # for one sample
    time_ms: float | None  # median, for the whole batch; None for a layer that did not run


def layer_costs(model: nn.Module, batch: Batch) -> list[Cost]:
    """The cost of each layer in the order of the network; all that is no layer (activations, pooling) comes last.

    A layer is what holds parameters; one with a weight of its own is counted with everything in it. A tensor that two
    layers share is counted with the first. Times are taken from hooks around the layers, in this process.
    """
    layers = dict(_layers(model))
    macs = count_macs(to_float(model), batch)
    times, whole_ms = _times(model, batch, layers)
    costs: list[Cost] = []
    seen: set[int] = set()
    for path, module in layers.items():
        inside = bool(weight_names(module))
        tensors = [*module.parameters(recurse=inside), *module.buffers(recurse=inside)]
        fresh = [tensor for tensor in tensors if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in fresh}
        values = _values(module, inside)
        count = sum(tensor.numel() for tensor in values)
        zeros = sum(int((tensor == 0).sum()) for tensor in values)
        costs.append(
            Cost(
                path=path,
                kind=plain_class(type(module)).__name__,
                parameters=count if fresh else 0,
                bytes=sum(map(tensor_bytes, fresh)),
                sparsity=zeros / count if count else 0.0,
                macs=macs.get(path, 0),
                time_ms=times.get(path),
            )
        )
    rest_ms = max(0.0, whole_ms - sum(cost.time_ms or 0.0 for cost in costs))
    rest = Cost(path=OTHER, kind="", parameters=0, bytes=0, sparsity=0.0, macs=0, time_ms=rest_ms)
    return [*costs, rest]


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold tensors themselves; those with a weight stand for everything below them."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if weight_names(module):
        yield path, module
        return
    if own:
        yield path, module
    seen = set()
    for name, child in module.named_children():
        if id(child) not in seen:
            seen.add(id(child))
            yield from _layers(child, f"{path}.{name}" if path else name)


def _values(module: nn.Module, inside: bool) -> list[Tensor]:
    """The layer's parameters as numbers, coded ones decoded."""
    plain = to_float(module) if inside else module
    return [parameter.detach() for parameter in plain.parameters(recurse=inside)]


def _times(model: nn.Module, batch: Batch, layers: dict[str, nn.Module]) -> tuple[dict[str, float], float]:
    """Median milliseconds of each layer that ran, and of the whole call; layers inside others are not counted twice."""
    rounds: list[dict[str, float]] = []
    wholes: list[float] = []
    with evaluating(model), _clocks(layers) as spent:
        for _ in range(WARM_UPS):
            call(model, batch)
        end = time.perf_counter() + LONGEST_S
        while len(rounds) < LEAST_REPEATS or (len(rounds) < MOST_REPEATS and time.perf_counter() < end):
            spent.clear()
            start = time.perf_counter()
            call(model, batch)
            wholes.append((time.perf_counter() - start) * 1e3)
            rounds.append(dict(spent))
    found = {path: median(round_.get(path, 0.0) for round_ in rounds) for path in rounds[-1]}
    return found, median(wholes)


@contextmanager
def _clocks(layers: dict[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Milliseconds spent in each layer since the dict was last emptied, less what was spent in layers inside it."""
    spent: dict[str, float] = {}
    open_: list[list[float]] = []  # start of a call, and the time of the layers inside it

    def enter(_: nn.Module, __: Any) -> None:
        open_.append([time.perf_counter(), 0.0])

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def stop(_: nn.Module, __: Any, ___: Any) -> None:
            start, inner = open_.pop()
            whole = (time.perf_counter() - start) * 1e3
            if open_:
                open_[-1][1] += whole
            spent[path] = spent.get(path, 0.0) + whole - inner

        return stop

    handles = []
    for path, module in layers.items():
        if path or len(layers) == 1:  # a model with layers inside is the whole call, not a layer
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(path))]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
