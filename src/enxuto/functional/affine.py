"""Affine grids: x ≈ (code − zero_point) · scale, with integer codes of 1 to 8 bits.

Weights use symmetric grids, so zero is a code; activations use unsigned codes with a zero point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

CLIP_STEPS = 40  # candidates of `fit_scale` between CLIP_LOWEST and 1 times the largest magnitude
CLIP_LOWEST = 0.3
PIECE = 2**17  # values that are worked on at once: what a step takes beside its weights does not grow with them


def largest_code(bits: int) -> int:
    """The magnitude of the largest symmetric code: 2 bits are ternary {−1, 0, 1}, 1 bit is binary {−1, 1}.

    >>> [largest_code(bits) for bits in (1, 2, 4, 8)]
    [1, 1, 7, 127]
    """
    return max(1, 2 ** (bits - 1) - 1)


def absmax_scale(rows: Tensor, bits: int) -> Tensor:
    """The scale that maps the largest magnitude of each row to the largest code; 1 for a row of zeros.

    Shapes: rows [rows, in] -> [rows].
    """
    largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
    scale = (largest / largest_code(bits)).clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.where(largest > 0, scale, torch.ones_like(scale))


def fit_scale(rows: Tensor, bits: int) -> Tensor:
    """The scale of least squared rounding error for each row: `absmax_scale`, clipped where that helps.

    Shapes: rows [rows, in] -> [rows].
    Source: a plain line search, as in Banner, Nahshan, Soudry 2019, "Post training 4-bit quantization of convolutional
    networks for rapid-deployment" (which solves the same problem in closed form for given distributions).
    One bit has the closed form mean |x| (Rastegari et al. 2016, "XNOR-Net", eq. 6).
    """
    if len(rows) > 1 and rows.numel() > PIECE:
        return torch.cat([fit_scale(few, bits) for few in rows.split(max(1, PIECE // rows.shape[1]))])
    if bits == 1:
        mean = rows.abs().mean(dim=1, dtype=torch.float64).to(rows.dtype)
        return torch.where(mean > 0, mean, torch.ones_like(mean))
    widest, limit = absmax_scale(rows, bits), largest_code(bits)
    steps = rows / widest[:, None]  # in steps of the widest grid: no square is too small or too large for a float
    best, least = torch.ones_like(widest), torch.full_like(widest, torch.inf)
    rounded = torch.empty_like(steps)
    for ratio in torch.linspace(1.0, CLIP_LOWEST, CLIP_STEPS).tolist():
        torch.div(steps, ratio, out=rounded).round_().clamp_(-limit, limit).mul_(ratio).sub_(steps)
        error = rounded.square_().sum(dim=1)
        best, least = torch.where(error < least, ratio, best), torch.minimum(error, least)
    return (widest * best).clamp_min(torch.finfo(rows.dtype).tiny)


def short(scale: Tensor) -> Tensor:
    """The scale with 16 significant bits: its product with every code is then exact, and the file keeps fewer bytes.

    Shapes: scale float32 [any] -> [any]. A grid fitted to values that are on it is therefore the same grid again.
    """
    return (scale.contiguous().view(torch.int32) & ~0xFF).view(torch.float32)


def to_codes(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest symmetric code of each value, as whole floats; one bit knows no zero and takes the sign.

    Shapes: rows [rows, in], scale [rows] -> [rows, in].
    """
    if bits == 1:
        return torch.where(rows < 0, -1.0, 1.0).to(rows.dtype)
    limit = largest_code(bits)
    return (rows / scale[:, None]).round().clamp(-limit, limit)


def learned_rounding(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The rows on their grid, with gradients for the rows (straight through) and for the scale.

    Shapes: rows [rows, in], scale [rows] -> [rows, in].
    Source: Esser et al. 2020, "Learned Step Size Quantization", eq. 1-3. One bit: straight through, scale by the signs.
    """
    if bits == 1:
        signs = to_codes(rows.detach(), scale.detach(), bits)
        return signs * scale[:, None] + (rows - rows.detach())
    rounded: Tensor = _Rounded.apply(rows, scale, largest_code(bits))  # type: ignore[no-untyped-call]
    return rounded


def learned_steps(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Where the rows lie between codes, within the largest, with gradients for the rows and for the scale.

    Shapes: rows [rows, in], scale [rows] -> [rows, in].
    """
    steps: Tensor = _Steps.apply(rows, scale, largest_code(bits))  # type: ignore[no-untyped-call]
    return steps


class _Steps(Function):
    """A quotient that is clamped; its gradients in three passes over all weights, where autograd makes seven."""

    @staticmethod
    def forward(rows: Tensor, scale: Tensor, limit: int) -> Tensor:
        return (rows / scale[:, None]).clamp_(-limit, limit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.limit = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        scale, steps = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, -ctx.limit, ctx.limit).div_(scale[:, None])
        return inside, -torch.linalg.vecdot(inside, steps), None


class _Rounded(Function):
    """The rows on their steps; a pass over all weights takes longer than what it computes, and autograd's own makes many."""

    @staticmethod
    def forward(rows: Tensor, scale: Tensor, limit: int) -> Tensor:
        return (rows / scale[:, None]).clamp_(-limit, limit).round_().mul_(scale[:, None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.limit = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, scale = ctx.saved_tensors
        steps, beyond = rows / scale[:, None], ctx.limit * (1 + 2**-20)  # what lies on the last code learns
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, -beyond, beyond)
        off = steps.clamp(-ctx.limit, ctx.limit).round_()
        off = off - torch.ops.aten.hardtanh_backward(steps, steps, -beyond, beyond)
        return inside, torch.linalg.vecdot(gradient, off), None


def learned_inputs(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values on the unsigned grid of 8 bits as inputs are shipped, with gradients for them (straight through) and for the scale.

    Shapes: values [batch, any], scale float32 [1], zero_point int32 [1] -> as the values.
    Source: Esser et al. 2020, "Learned Step Size Quantization", eq. 1-3, and section 2.2 for the size of the scale's gradient.
    """
    rounded: Tensor = _Inputs.apply(values, scale, zero_point)  # type: ignore[no-untyped-call]
    return rounded


class _Inputs(Function):
    """Forwards what every runtime computes, so that nothing is another value when it ships."""

    @staticmethod
    def forward(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        values, scale, zero_point, output = ctx.saved_tensors
        low, high = (float((end - zero_point) * scale) for end in (-0.5, 255.5))
        inside = torch.ops.aten.hardtanh_backward(gradient, values, low, high)
        if not ctx.needs_input_grad[1]:
            return inside, None, None
        off = output - torch.ops.aten.hardtanh_backward(values, values, low, high)  # of what is beyond, all of the last code
        size = (255 * max(1, values.numel() // max(1, len(values)))) ** -0.5
        return inside, (torch.dot(gradient.flatten().float(), off.flatten().float()) / scale * size).view_as(scale), None


def activation_grid(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Scale and zero point of the unsigned grid that covers [low, high] and zero.

    >>> activation_grid(0.0, 2.55)
    (0.01, 0)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2**bits - 1
    scale = float(f"{(high - low) / top:.12g}") or 1.0  # twelve digits: a range of 2.55 has the scale 0.01
    scale = max(scale, torch.finfo(torch.float32).tiny)
    return scale, max(0, min(top, round(-low / scale)))
