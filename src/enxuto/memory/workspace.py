"""What an operator needs beside its inputs and outputs while it runs on a CPU: copies into the layouts its library wants.

The rules were read off torch 2.13's allocator and its library oneDNN 3 (bench/memory_predict.py checks them on every network
of the zoo). An operator without a rule needs nothing. On other devices nothing is known and nothing is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
"""Channels that oneDNN keeps together in its blocked layouts: the floats of one vector register."""
PLAIN_CHANNELS, NARROW = 3, 8
"""Up to so many input channels, the gradient of a weight takes the image as it is; up to `LANES`, in blocks of so many."""
SUMS, HALF_SUMS = 512, 8660
"""Bytes of partial sums: of a layer norm's backward pass, and of a convolution's in half precision."""
STRIDED, STRIDED_THREAD, BIASED = 12416, 8216, 128
"""Bytes of a convolution towards its input: with a stride, and of each thread then; with a bias."""
MKLDNN = ("Mkldnn", "???")
"""Names of oneDNN's backends; that of transposed convolutions has none."""
HALF = 2
"""Bytes of an element in half precision."""
PACKED = {
    dtype
    for dtype, supported in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported()),
    )
    if supported
}
"""Types of half precision whose products this machine leaves to oneDNN."""


def workspace(func: Any, args: tuple[Any, ...], outputs: Any) -> int:
    """Bytes inside one operator, at its fullest moment, beyond what it gives back."""
    rule = RULES.get(func.overloadpacket)
    if rule is None or next(iter(_tensors(args))).device.type != "cpu":
        return 0
    return max(0, rule(args, outputs))


def complete_(func: Any, args: tuple[Any, ...], outputs: Any) -> None:
    """Gives an output without storage, of which torch does not know how large it will be, its size."""
    if func.overloadpacket is aten.mkldnn_rnn_layer:
        train, kept = args[-1], outputs[3]
        if train:
            kept.untyped_storage().resize_(_recurrent_reserve(args))
    elif func.overloadpacket in LOSSES and outputs.ndim == 0:  # one number, in the storage of all that it was reduced from
        outputs.untyped_storage().resize_(_elementwise(args))


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _copies(tensors: Sequence[Any]) -> int:
    """Bytes of contiguous copies of what is not contiguous."""
    return sum(_bytes(tensor) for tensor in _tensors(tensors) if not tensor.is_contiguous())


def _elementwise(args: tuple[Any, ...]) -> int:
    """Bytes of what two tensors give element by element."""
    one, other = args[:2]
    return torch.broadcast_shapes(one.shape, other.shape).numel() * one.element_size()


# convolutions


def _backend(x: Tensor, weight: Tensor, rest: Sequence[Any]) -> str:
    return str(torch._C._select_conv_backend(x, weight, None, *rest, None)).rpartition(".")[2]


def _channels_last(*tensors: Tensor) -> bool:
    return any(
        tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in tensors
    )


def _blocked(x: Tensor, lanes: int = LANES) -> int:
    """Bytes of a map in oneDNN's layout, its channels filled up to whole vectors."""
    return _bytes(x) // x.shape[1] * _up(x.shape[1], lanes)


def _blocked_weight(weight: Tensor, lanes: int = LANES, *, plain: bool = False) -> int:
    """Bytes of a weight in oneDNN's layout, its input channels as they are where the image is read so."""
    out, inside = weight.shape[:2]
    inside = inside if plain or inside <= PLAIN_CHANNELS else _up(inside, lanes)
    return weight.element_size() * _up(out, lanes) * inside * math.prod(weight.shape[2:])


def _pointwise(weight: Tensor) -> bool:
    return all(size == 1 for size in weight.shape[2:])


def _columns(x: Tensor, weight: Tensor, maps: Tensor, rest: Sequence[Any]) -> int:
    """Bytes of the unfolded input of a convolution by matrix product."""
    stride, padding, _, transposed = rest[:4]
    if transposed:  # a sample at a time
        return x.element_size() * math.prod(weight.shape[1:]) * math.prod(x.shape[2:])
    if _pointwise(weight) and all(s == 1 for s in stride) and not any(padding):
        return 0
    return x.element_size() * x.shape[0] * math.prod(weight.shape[1:]) * math.prod(maps.shape[2:])


def _convolution(args: tuple[Any, ...], y: Tensor) -> int:
    x, weight, _, *rest = args
    backend = _backend(x, weight, rest)
    if backend.startswith("Slow"):
        return _columns(x, weight, y, rest)
    if not backend.startswith(MKLDNN):
        return 0
    if _channels_last(x, weight):
        return _blocked_weight(weight)
    inside = _to_input(x, weight, y, rest[0], biased=args[2] is not None) if rest[3] else _to_output(x, weight, y)
    return inside - _bytes(y)


def _to_output(x: Tensor, weight: Tensor, y: Tensor) -> int:
    """Bytes, with the result: from x to y, or from the gradient of a transposed convolution's output to that of its input."""
    plain = x.shape[1] < LANES and not _pointwise(weight)
    read = 0 if plain else _blocked(x)
    sums = 2 * _blocked(y[:1]) if x.element_size() == HALF and _pointwise(weight) else 0  # a sample in floats
    return max(read + _blocked_weight(weight, plain=plain) + _blocked(y) + sums, _blocked(y) + _bytes(y))


def _to_input(y: Tensor, weight: Tensor, x: Tensor, stride: Sequence[int], *, biased: bool = False) -> int:
    """Bytes, with the result: the other way round. With a stride, maps keep their channels, and a thread has a padded sample."""
    out, inside = (_up(channels, LANES) for channels in weight.shape[:2])
    taps = x.element_size() * math.prod(weight.shape[2:])
    if any(step > 1 for step in stride):
        sample = x.element_size() * out * math.prod(size + 2 for size in y.shape[2:])
        scratch = STRIDED + torch.get_num_threads() * (STRIDED_THREAD + sample)
        return max(_bytes(y) + taps * weight.shape[0] * inside + _bytes(x) + scratch, 3 * _bytes(x))
    sums = 4 * _blocked(x) // x.element_size() + BIASED if biased else 0  # the result again, in floats
    return max(_blocked(y) + taps * out * inside + _blocked(x) + sums, _blocked(x) + _bytes(x))


def _to_weight(x: Tensor, weight: Tensor, y: Tensor) -> int:
    """Bytes, with the result: from x and the gradient of y to that of the weight; in half precision, summed in floats."""
    channels, taps, half, points = x.shape[1], weight.shape[2:], x.element_size() == HALF, _pointwise(weight)
    if half and channels < LANES and not points:  # a matrix product of unfolded samples
        columns = HALF * channels * math.prod(taps) * math.prod(y.shape[2:])
        return 3 * _bytes(weight) + torch.get_num_threads() * columns
    lanes = NARROW if PLAIN_CHANNELS < channels < LANES and not half and not points else LANES
    weights, maps = _blocked_weight(weight, lanes), _blocked(y, lanes)
    if channels > PLAIN_CHANNELS or points:
        maps += _blocked(x, lanes)
    if half and points:
        return maps + 3 * weights
    if half:
        wide = _up(channels, LANES) * math.prod(x.shape[2:-1]) * (x.shape[-1] + taps[-1] - 1)
        turned = HALF * wide + _blocked(y[:1])
        return maps + 3 * weights + HALF_SUMS + torch.get_num_threads() * turned
    return weights + max(maps, _bytes(weight))


def _convolution_backward(args: tuple[Any, ...], outputs: Sequence[Any]) -> int:
    gradient, x, weight, _, *rest = args
    rest, wanted = rest[:-1], rest[-1]
    backend = _backend(x, weight, rest)
    if backend.startswith("Slow"):
        return _columns(x, weight, gradient, rest) + _copies([gradient])
    if not backend.startswith(MKLDNN):
        return 0
    if _channels_last(x, weight, gradient):
        return _blocked_weight(weight)
    image, answer = (gradient, x) if rest[3] else (x, gradient)
    to_input = _to_output(image, weight, answer) if rest[3] else _to_input(answer, weight, image, rest[0])
    to_weight = (_bytes(x) if wanted[0] else 0) + _to_weight(image, weight, answer)
    given = sum(_bytes(tensor) for tensor in _tensors(outputs))
    return max(to_input if wanted[0] else 0, to_weight if wanted[1] else 0) - given + _copies([gradient])


# norms


def _batch_norm_backward(args: tuple[Any, ...], outputs: Any) -> int:
    training, x = args[7], args[1]
    return 0 if _channels_last(x) or not training else _bytes(x)


def _layer_norm(args: tuple[Any, ...], outputs: Any) -> int:
    return _copies(args)


def _layer_norm_backward(args: tuple[Any, ...], outputs: Any) -> int:
    return _copies(args[:2]) + SUMS


# attention


def _attention(args: tuple[Any, ...], outputs: Any) -> int:
    """The fused layer that a MultiheadAttention is in eval mode: projections, their transposed copy, then the scores."""
    query, heads = args[0], args[4]
    samples, length, _ = query.shape
    scores = samples * heads * length**2 * query.element_size()
    return max(6 * _bytes(query), 3 * _bytes(query) + scores) - _bytes(query)


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
    return _copies([gradient.transpose(1, 2)]) + torch.get_num_threads() * (scores + 4 * queries)


# losses and pictures


def _upsample(args: tuple[Any, ...], output: Tensor) -> int:
    """Copies of the input and the output with channels last, which its vectorized kernel wants (UpSampleKernel.cpp)."""
    return _copies_with_channels_last(args[0], output) if sum(output.shape[2:]) <= 128 else 0


def _bilinear(args: tuple[Any, ...], output: Tensor) -> int:
    return _copies_with_channels_last(args[0], output) if args[0].shape[1] <= 3 else _upsample(args, output)


def _copies_with_channels_last(x: Tensor, output: Tensor) -> int:
    return 0 if x.is_contiguous(memory_format=torch.channels_last) else _bytes(x) + _bytes(output)


def _loss(args: tuple[Any, ...], output: Tensor) -> int:
    return 0 if output.ndim else _elementwise(args)


# matrix products and mixed types


def _product(args: tuple[Any, ...], outputs: Any) -> int:
    """In half precision, oneDNN packs a part of the right factor and sums in floats."""
    left, right = _tensors(args)[-2:]
    if left.element_size() != HALF or left.ndim != 2 or left.dtype not in PACKED:
        return 0
    wide = min(1, right.shape[1] / 64)
    return int(wide * (16384 + 256 * min(left.shape[0], 64) + 64 * left.shape[1]))


def _mixed(args: tuple[Any, ...], output: Tensor) -> int:
    """Copies of the operands that have another type than the result."""
    others = [tensor for tensor in _tensors(args) if tensor.ndim and tensor.dtype != output.dtype]
    return sum(tensor.numel() * output.element_size() for tensor in others)


def _mean(args: tuple[Any, ...], output: Tensor) -> int:
    """In half precision, a copy in floats."""
    return 4 * (args[0].numel() + output.numel()) if args[0].element_size() == HALF else 0


# LSTM layers, oneDNN's rnn_utils: leading dimensions are whole cache lines, never a multiple of 256 elements; parts are pages


def _leading(size: int, element: int = 4) -> int:
    line = 64 // element
    lines = _up(size, line)
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
    return sum(_up(part, 4096) for part in parts)


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
    copies = 4 * samples * hidden * (steps + 2) + 4 * _up(inputs, 16) * 4 * hidden
    return copies + weights + _recurrent_scratch(args)


LOSSES = (aten.mse_loss, aten.smooth_l1_loss, aten.soft_margin_loss, aten.binary_cross_entropy)
"""Losses whose one number keeps the storage of all elements."""

RULES: Mapping[Any, Callable[[tuple[Any, ...], Any], int]] = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
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
