"""What an operator needs beside its inputs and outputs while it runs on a CPU: copies into the layouts its library wants.

Convolutions are asked (`inquiry.py`). The other rules were read off torch 2.13's allocator and its library oneDNN 3.12
(bench/memory_predict.py checks them on every network of the zoo). An operator without a rule needs nothing. On other devices
nothing is known and nothing is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from enxuto.memory.convolutions import (
    HALF,
    channels_last,
    convolution,
    convolution_backward,
    copies_of,
    tensors_of,
)
from enxuto.memory.inquiry import inside
from enxuto.memory.processor import READ, read_here
from enxuto.sizes import format_bytes, rounded_up, tensor_bytes

aten = torch.ops.aten
SUMS = 512
"""Bytes of partial sums of a layer norm's backward pass."""
PACKED = {
    dtype
    for dtype, supported in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported()),
    )
    if supported
}
"""Types of half precision whose products this machine leaves to oneDNN."""


class Workspaces:
    """Bytes inside one operator, at its fullest moment, beyond what it gives back.

    Convolutions are asked; elsewhere, and where one cannot be asked, rules tell. `unsure` names the operators whose rules were
    not read on this processor and this torch, with the most that they told.
    """

    def __init__(self) -> None:
        self.unsure: dict[str, int] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], outputs: Any) -> int:
        rule = RULES.get(func.overloadpacket)
        first = next(iter(tensors_of(args)), None)
        if rule is None or first is None or first.device.type != "cpu":
            return 0
        asked = inside(func, args, outputs)
        if asked is not None:
            return asked
        told = max(0, rule(args, outputs))
        name = func.overloadpacket.__name__
        if told and not read_here(half_convolution=name.startswith("convolution") and first.dtype in PACKED):
            self.unsure[name] = max(told, self.unsure.get(name, 0))
        return told

    @property
    def most(self) -> int:
        """The most bytes at a time that are not sure."""
        return max(self.unsure.values(), default=0)

    @property
    def words(self) -> str:
        """What to know about the sum; "" when all is known."""
        if not self.unsure:
            return ""
        return (
            f"what {', '.join(sorted(self.unsure))} need inside is a guess by rules of other processors ({READ}), "
            f"up to {format_bytes(self.most)} at a time"
        )


def complete_(func: Any, args: tuple[Any, ...], outputs: Any) -> None:
    """Gives an output without storage, of which torch does not know how large it will be, its size."""
    if func.overloadpacket is aten.mkldnn_rnn_layer:
        train, kept = args[-1], outputs[3]
        if train:
            kept.untyped_storage().resize_(_recurrent_reserve(args))
    elif func.overloadpacket in LOSSES and outputs.ndim == 0:  # one number, in the storage of all that it was reduced from
        outputs.untyped_storage().resize_(_elementwise(args))


def _elementwise(args: tuple[Any, ...]) -> int:
    """Bytes of what two tensors give element by element."""
    one, other = args[:2]
    return torch.broadcast_shapes(one.shape, other.shape).numel() * one.element_size()


# norms


def _batch_norm_backward(args: tuple[Any, ...], outputs: Any) -> int:
    training, x = args[7], args[1]
    return 0 if channels_last(x) or not training else tensor_bytes(x)


def _layer_norm(args: tuple[Any, ...], outputs: Any) -> int:
    return copies_of(args)


def _layer_norm_backward(args: tuple[Any, ...], outputs: Any) -> int:
    return copies_of(args[:2]) + SUMS


# attention


def _attention(args: tuple[Any, ...], outputs: Any) -> int:
    """The fused layer that a MultiheadAttention is in eval mode: projections, their transposed copy, then the scores."""
    query, heads = args[0], args[4]
    samples, length, _ = query.shape
    scores = samples * heads * length**2 * query.element_size()
    return max(6 * tensor_bytes(query), 3 * tensor_bytes(query) + scores) - tensor_bytes(query)


def _flash_tile(query: Tensor, key: Tensor) -> tuple[int, int]:
    """Queries and keys that a thread takes at a time (aten/native/cpu/FlashAttentionKernel.cpp)."""
    length = query.shape[2]
    return min(length, 256 if length >= 768 else 64 if length >= 192 else 32), min(key.shape[2], 512)


def _flash_attention(args: tuple[Any, ...], outputs: Any) -> int:
    query, key, value = args[:3]
    queries, keys = _flash_tile(query, key)
    scores = queries * keys * (4 + (HALF if query.element_size() == HALF else 0))
    return torch.get_num_threads() * (scores + 4 * queries * (2 + value.shape[3]))


def _flash_attention_backward(args: tuple[Any, ...], outputs: Any) -> int:
    gradient, query, key = args[:3]
    queries, keys = _flash_tile(query, key)
    scores = 2 * queries * keys * (4 + (HALF if query.element_size() == HALF else 0))
    return copies_of([gradient.transpose(1, 2)]) + torch.get_num_threads() * (scores + 4 * queries)


# losses and pictures


def _upsample(args: tuple[Any, ...], output: Tensor) -> int:
    """Copies of the input and the output with channels last, which its vectorized kernel wants (UpSampleKernel.cpp)."""
    return _copies_with_channels_last(args[0], output) if sum(output.shape[2:]) <= 128 else 0


def _bilinear(args: tuple[Any, ...], output: Tensor) -> int:
    return _copies_with_channels_last(args[0], output) if args[0].shape[1] <= 3 else _upsample(args, output)


def _copies_with_channels_last(x: Tensor, output: Tensor) -> int:
    return 0 if x.is_contiguous(memory_format=torch.channels_last) else tensor_bytes(x) + tensor_bytes(output)


def _loss(args: tuple[Any, ...], output: Tensor) -> int:
    return 0 if output.ndim else _elementwise(args)


# matrix products and mixed types


def _product(args: tuple[Any, ...], outputs: Any) -> int:
    """In half precision, oneDNN packs a part of the right factor and sums in floats."""
    left, right = tensors_of(args)[-2:]
    if left.element_size() != HALF or left.ndim != 2 or left.dtype not in PACKED:
        return 0
    wide = min(1, right.shape[1] / 64)
    return int(wide * (16384 + 256 * min(left.shape[0], 64) + 64 * left.shape[1]))


def _mixed(args: tuple[Any, ...], output: Tensor) -> int:
    """Copies of the operands that have another type than the result."""
    others = [tensor for tensor in tensors_of(args) if tensor.ndim and tensor.dtype != output.dtype]
    return sum(tensor.numel() * output.element_size() for tensor in others)


def _mean(args: tuple[Any, ...], output: Tensor) -> int:
    """In half precision, a copy in floats."""
    return 4 * (args[0].numel() + output.numel()) if args[0].element_size() == HALF else 0


# LSTM layers, oneDNN's rnn_utils: leading dimensions are whole cache lines, never a multiple of 256 elements; parts are pages


def _leading(size: int, element: int = 4) -> int:
    line = 64 // element
    lines = rounded_up(size, line)
    return lines + line if lines % 256 == 0 else lines


def _recurrent_sizes(args: tuple[Any, ...]) -> tuple[int, int, int, int, int]:
    """Steps, samples, inputs and hidden units of an LSTM layer, and the bytes of an element."""
    x, recurrent = args[0], args[2]
    return x.shape[0], x.shape[1], x.shape[2], recurrent.shape[1], x.element_size()


def _recurrent_reserve(args: tuple[Any, ...]) -> int:
    """Bytes that an LSTM layer keeps for its backward pass: gates, states (layer, time, cell) and the gradients of states."""
    steps, samples, inputs, hidden, element = _recurrent_sizes(args)
    states, wide = 2 * (steps + 1) * samples, _leading(max(inputs, hidden), element)
    parts = [
        element * steps * samples * _leading(4 * hidden, element),
        element * states * wide,
        element * states * wide,
        4 * states * hidden,
        4 * states * _leading(max(inputs, hidden)),
        4 * states * hidden,
        element * steps * samples * _leading(hidden, element),
    ]
    return sum(rounded_up(part, 4096) for part in parts)


def _recurrent_weights(args: tuple[Any, ...], leading: int, element: int) -> int:
    _, _, inputs, hidden, _ = _recurrent_sizes(args)
    return element * (inputs + hidden) * leading + 16 * hidden


def _recurrent(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    steps, samples, inputs, hidden, element = _recurrent_sizes(args)
    gates = element * steps * samples * 4 * hidden
    if not outputs[3].untyped_storage().nbytes():
        twice = 2 if samples == 1 else 1
        states = 26 * samples * hidden + 40960 if element == HALF else 36 * samples * hidden + 8192
        states += 2 * (steps + 1) * samples * element * (_leading(max(inputs, hidden), element) - hidden)
        return _recurrent_weights(args, 4 * hidden, element) + twice * gates + states
    if element == HALF:
        return _recurrent_weights(args, 4 * hidden, element) + 8 * samples * hidden
    return _recurrent_weights(args, _leading(4 * hidden), element) + _recurrent_scratch(args)


def _recurrent_scratch(args: tuple[Any, ...]) -> int:
    steps, samples, _, hidden, _ = _recurrent_sizes(args)
    return 4 * samples * (steps * _leading(4 * hidden) + 2 * _leading(hidden))


def _recurrent_backward(args: tuple[Any, ...], outputs: Any) -> int:
    steps, samples, inputs, hidden, element = _recurrent_sizes(args)
    weights = _recurrent_weights(args, _leading(4 * hidden), 4)
    if element == HALF:
        return samples * hidden * (6 * steps + 16) + weights + 2 * hidden * 4 * hidden + 16 * samples * hidden
    copies = 4 * samples * hidden * (steps + 2) + 4 * rounded_up(inputs, 16) * 4 * hidden
    return copies + weights + _recurrent_scratch(args)


LOSSES = (aten.mse_loss, aten.smooth_l1_loss, aten.soft_margin_loss, aten.binary_cross_entropy)
"""Losses whose one number keeps the storage of all elements."""

RULES: Mapping[Any, Callable[[tuple[Any, ...], Any], int]] = {
    aten.convolution: convolution,
    aten.convolution_backward: convolution_backward,
    aten.native_batch_norm_backward: _batch_norm_backward,
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten._native_multi_head_attention: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash_attention,
    aten.upsample_bilinear2d: _bilinear,
    aten.upsample_nearest2d: _upsample,
    aten.mse_loss: _loss,
    aten.smooth_l1_loss: _loss,
    aten.huber_loss: _loss,
    aten.mm: _product,
    aten.addmm: _product,
    aten.add: _mixed,
    aten.mul: _mixed,
    aten.mean: _mean,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mkldnn_rnn_layer_backward: _recurrent_backward,
}
