"""The rules of convolutions: what oneDNN copies, pads and sums for them, for when it cannot be asked itself (`inquiry.py`).

Read off oneDNN 3.12 in torch 2.13, on the processors that `processor.py` names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from enxuto.memory.processor import LANES
from enxuto.sizes import rounded_up, tensor_bytes

HALF = 2
"""Bytes of an element in half precision."""
PLAIN_CHANNELS, NARROW = 3, 8
"""Up to so many input channels, the gradient of a weight takes the image as it is; up to `LANES`, in blocks of so many."""
HALF_SUMS = 8660
"""Bytes of partial sums in half precision."""
STRIDED, STRIDED_THREAD, BIASED = 12416, 8216, 128
"""Bytes of a convolution towards its input: with a stride, and of each thread then; with a bias."""
MKLDNN = ("Mkldnn", "???")
"""Names of oneDNN's backends; that of transposed convolutions has none."""


def tensors_of(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among some arguments. Shapes: any."""
    return [value for value in values if isinstance(value, Tensor)]


def copies_of(tensors: Sequence[Any]) -> int:
    """Bytes of contiguous copies of what is not contiguous. Shapes: any."""
    return sum(tensor_bytes(tensor) for tensor in tensors_of(tensors) if not tensor.is_contiguous())


def backend(x: Tensor, weight: Tensor, rest: Sequence[Any]) -> str:
    """Which of its ways torch takes to run a convolution, by its own choice. Shapes: as for `convolution`."""
    return str(torch._C._select_conv_backend(x, weight, None, *rest, None)).rpartition(".")[2]


def channels_last(*tensors: Tensor) -> bool:
    """True if one of some maps has its channels last, and so stays as it is. Shapes: [batch, channels, ...]."""
    return any(
        tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in tensors
    )


def _blocked(x: Tensor, lanes: int = LANES) -> int:
    """Bytes of a map in oneDNN's layout, its channels filled up to whole vectors."""
    return tensor_bytes(x) // x.shape[1] * rounded_up(x.shape[1], lanes)


def _blocked_weight(weight: Tensor, lanes: int = LANES, *, plain: bool = False) -> int:
    """Bytes of a weight in oneDNN's layout, its input channels as they are where the image is read so."""
    out, inside = weight.shape[:2]
    inside = inside if plain or inside <= PLAIN_CHANNELS else rounded_up(inside, lanes)
    return weight.element_size() * rounded_up(out, lanes) * inside * math.prod(weight.shape[2:])


def _pointwise(weight: Tensor) -> bool:
    return all(size == 1 for size in weight.shape[2:])


def _columns(x: Tensor, weight: Tensor, maps: Tensor, rest: Sequence[Any], *, backward: bool = False) -> int:
    """Bytes of the unfolded input of a convolution by matrix product, of one sample or of all."""
    stride, padding, dilation, transposed = rest[:4]
    samples = 1 if any(step > 1 for step in dilation) or (transposed and backward) else x.shape[0]
    if transposed:
        return samples * x.element_size() * math.prod(weight.shape[1:]) * math.prod(x.shape[2:])
    if _pointwise(weight) and all(s == 1 for s in stride) and not any(padding):
        return 0
    return samples * x.element_size() * math.prod(weight.shape[1:]) * math.prod(maps.shape[2:])


def convolution(args: tuple[Any, ...], y: Tensor) -> int:
    """Bytes inside a convolution beyond its result.

    Shapes: x [batch, in, ...], weight [out, in / groups, ...] (transposed: [in, out / groups, ...]), y [batch, out, ...].
    """
    x, weight, _, *rest = args
    chosen = backend(x, weight, rest)
    if chosen.startswith("Slow"):
        return _columns(x, weight, y, rest)
    if not chosen.startswith(MKLDNN):
        return 0
    if channels_last(x, weight):
        return _blocked_weight(weight)
    inside = _to_input(x, weight, y, rest[0], biased=args[2] is not None) if rest[3] else _to_output(x, weight, y)
    return inside - tensor_bytes(y)


def _to_output(x: Tensor, weight: Tensor, y: Tensor) -> int:
    """Bytes, with the result: from x to y, or from the gradient of a transposed convolution's output to that of its input."""
    plain = x.shape[1] < LANES and not _pointwise(weight)
    read = 0 if plain else _blocked(x)
    sums = 2 * _blocked(y[:1]) if x.element_size() == HALF and _pointwise(weight) else 0  # a sample in floats
    return max(read + _blocked_weight(weight, plain=plain) + _blocked(y) + sums, _blocked(y) + tensor_bytes(y))


def _to_input(y: Tensor, weight: Tensor, x: Tensor, stride: Sequence[int], *, biased: bool = False) -> int:
    """Bytes, with the result: the other way round. With a stride, maps keep their channels, and a thread has a padded sample."""
    out, inside = (rounded_up(channels, LANES) for channels in weight.shape[:2])
    taps = x.element_size() * math.prod(weight.shape[2:])
    if any(step > 1 for step in stride):
        sample = x.element_size() * out * math.prod(size + 2 for size in y.shape[2:])
        scratch = STRIDED + torch.get_num_threads() * (STRIDED_THREAD + sample)
        return max(tensor_bytes(y) + taps * weight.shape[0] * inside + tensor_bytes(x) + scratch, 3 * tensor_bytes(x))
    sums = 4 * _blocked(x) // x.element_size() + BIASED if biased else 0  # the result again, in floats
    return max(_blocked(y) + taps * out * inside + _blocked(x) + sums, _blocked(x) + tensor_bytes(x))


def _to_weight(x: Tensor, weight: Tensor, y: Tensor) -> int:
    """Bytes, with the result: from x and the gradient of y to that of the weight; in half precision, summed in floats."""
    channels, taps, half, points = x.shape[1], weight.shape[2:], x.element_size() == HALF, _pointwise(weight)
    if half and channels < LANES and not points:  # a matrix product of unfolded samples
        columns = HALF * channels * math.prod(taps) * math.prod(y.shape[2:])
        return 3 * tensor_bytes(weight) + torch.get_num_threads() * columns
    lanes = NARROW if PLAIN_CHANNELS < channels < LANES and not half and not points else LANES
    weights, maps = _blocked_weight(weight, lanes), _blocked(y, lanes)
    if channels > PLAIN_CHANNELS or points:
        maps += _blocked(x, lanes)
    if half and points:
        return maps + 3 * weights
    if half:
        wide = rounded_up(channels, LANES) * math.prod(x.shape[2:-1]) * (x.shape[-1] + taps[-1] - 1)
        turned = HALF * wide + _blocked(y[:1])
        return maps + 3 * weights + HALF_SUMS + torch.get_num_threads() * turned
    return weights + max(maps, tensor_bytes(weight))


def convolution_backward(args: tuple[Any, ...], outputs: Sequence[Any]) -> int:
    """Bytes inside a backward pass beyond the gradients that it gives.

    Shapes: the gradient as y [batch, out, ...], then as for `convolution`; outputs as x, weight and bias [out].
    """
    gradient, x, weight, _, *rest = args
    rest, wanted = rest[:-1], rest[-1]
    chosen = backend(x, weight, rest)
    if chosen.startswith("Slow"):
        return _columns(x, weight, gradient, rest, backward=True) + copies_of([gradient])
    if not chosen.startswith(MKLDNN):
        return 0
    if channels_last(x, weight, gradient):
        return _blocked_weight(weight)
    image, answer = (gradient, x) if rest[3] else (x, gradient)
    to_input = _to_output(image, weight, answer) if rest[3] else _to_input(answer, weight, image, rest[0])
    to_weight = (tensor_bytes(x) if wanted[0] else 0) + _to_weight(image, weight, answer)
    given = sum(tensor_bytes(tensor) for tensor in tensors_of(outputs))
    return max(to_input if wanted[0] else 0, to_weight if wanted[1] else 0) - given + copies_of([gradient])
