"""Multiply-accumulates of each layer for one sample, counted while the model runs; weights that are zero count too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from enxuto.batches import batch_size
from enxuto.task import Batch, call, evaluating

COUNTED = (
    nn.Linear,
    _ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
)


def count_macs(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Multiply-accumulates for one sample, by path in the order of the network; a layer called twice counts twice.

    Convolutions, Linear, Bilinear, LSTM, GRU, RNN and their cells, and MultiheadAttention with its two matrix products
    are counted; an Embedding costs none. Layers that do not run count 0. What a sample is, `enxuto.batches` says.
    """
    counts: dict[str, int] = {}
    hooks = []
    inside = {child for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.children()}
    for path, module in model.named_modules():
        if isinstance(module, COUNTED) and module not in inside:
            counts[path] = 0
            hooks.append(module.register_forward_hook(_counter(counts, path), with_kwargs=True))
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


def _counter(counts: dict[str, int], path: str) -> Callable[..., None]:
    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], outputs: object) -> None:
        given = [*args, *kwargs.values()]
        first = next(each for each in given if isinstance(each, (Tensor, nn.utils.rnn.PackedSequence)))
        counts[path] += _macs(module, first, given, outputs)

    return count


def _macs(module: nn.Module, first: Tensor | nn.utils.rnn.PackedSequence, given: Sequence[object], outputs: object) -> int:
    """Multiply-accumulates of one call of one layer."""
    if isinstance(module, nn.RNNBase):
        data = first.data if isinstance(first, nn.utils.rnn.PackedSequence) else first
        weights = [getattr(module, name) for name in module._flat_weights_names if name.startswith("weight")]
        return data.numel() // data.shape[-1] * sum(weight.numel() for weight in weights)
    assert isinstance(first, Tensor)
    if isinstance(module, nn.MultiheadAttention):
        others = [each for each in given if isinstance(each, Tensor) and each.is_floating_point() and each.ndim == first.ndim]
        key = others[1] if len(others) > 1 else first
        return _attention_macs(module, first, key)
    if isinstance(module, _ConvTransposeNd):
        return first.numel() // module.in_channels * module.weight.numel()
    if isinstance(module, _ConvNd):
        assert isinstance(outputs, Tensor)
        return outputs.numel() // module.out_channels * module.weight.numel()
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return math.prod(first.shape[:-1]) * module.weight.numel()
    if isinstance(module, nn.RNNCellBase):
        return math.prod(first.shape[:-1]) * (module.weight_ih.numel() + module.weight_hh.numel())
    return 0


def _attention_macs(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> int:
    width = module.embed_dim
    samples = 1 if query.ndim == 2 else query.shape[0 if module.batch_first else 1]
    to, source = query.numel() // width // samples, key.numel() // key.shape[-1] // samples
    projections = to * 2 * width * width + source * width * (module.kdim + module.vdim)
    return samples * (projections + 2 * to * source * width)
