"""Multiply-accumulates of each layer for one sample, counted while the model runs; weights that are zero count too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from enxuto.batches import Batch, batch_size
from enxuto.calls import call, evaluating
from enxuto.layers.traits import traits


def count_macs(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Multiply-accumulates for one sample, by path in the order of the network; a layer called twice counts twice.

    Convolutions, Linear, Bilinear, LSTM, GRU, RNN and their cells, and MultiheadAttention with its two matrix products
    are counted; an Embedding costs none. Layers that do not run count 0. What a sample is, `enxuto.batches` says.
    """
    counts: dict[str, int] = {}
    hooks = []
    inside = {child for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.children()}
    for path, module in model.named_modules():
        macs = traits(module).macs
        if macs is not None and module not in inside:
            counts[path] = 0
            hooks.append(module.register_forward_hook(_counter(counts, path, macs), with_kwargs=True))
    try:
        with evaluating(model):
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    samples = max(1, batch_size(batch))
    return {path: round(count / samples) for path, count in counts.items()}


def total_macs(model: nn.Module, batch: Batch) -> int:
    """Multiply-accumulates of the whole model for one sample."""
    return sum(count_macs(model, batch).values())


def _counter(counts: dict[str, int], path: str, macs: Callable[[Any, Sequence[object], object], int]) -> Callable[..., None]:
    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], outputs: object) -> None:
        counts[path] += macs(module, [*args, *kwargs.values()], outputs)

    return count
