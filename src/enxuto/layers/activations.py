"""The grid of a layer's input: what integer runtimes need to know, and what training sees meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from enxuto.checks import named, whole
from enxuto.errors import RangeError
from enxuto.functional.affine import learned_inputs


class ActivationGrid(nn.Module):
    """Rounds its input to 256 levels, x ≈ (code − zero_point) · scale, with straight-through gradients."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float = 1.0, zero_point: int = 0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.uint8))
        self.register_forward_pre_hook(_seen)

    def forward(self, input: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(input, self.scale, self.zero_point.to(torch.int32), 0, 255)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows a model to another device; in another dtype the grid keeps its precision."""
        kept = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = kept.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.3g}, zero_point={int(self.zero_point)}"


class LearningGrid(nn.Module):
    """The same in training, with a scale that learns, in relative terms: `scale · exp(growth)`. The zero point stays."""

    base: Tensor
    zero_point: Tensor

    def __init__(self, grid: ActivationGrid, *, learns: bool = True) -> None:
        super().__init__()
        self.register_buffer("base", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.growth = nn.Parameter(torch.zeros_like(grid.scale), requires_grad=learns)
        self.register_forward_pre_hook(_seen)

    def scale(self) -> Tensor:
        """As it is now and as it ships: float32 [1]."""
        return self.base * self.growth.float().exp()

    def forward(self, input: Tensor) -> Tensor:
        return learned_inputs(input, self.scale(), self.zero_point.to(torch.int32))

    @torch.no_grad()
    def settled(self) -> ActivationGrid:
        """The grid that ships."""
        made = ActivationGrid().to(self.base.device)
        made.scale, made.zero_point = self.scale().clone(), self.zero_point.clone()
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.base
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.base = kept.to(self.base.device)
        return self


def check_activations(bits: object) -> None:
    """Raises RangeError for bits of inputs that no runtime takes."""
    if bits is not None and not whole(bits, 8, 8):
        raise RangeError(f"{named('activations', bits)} is not supported by any runtime here; use 8 or None.")


def _seen(grid: nn.Module, inputs: object) -> None:
    """Does nothing; but where torch sees a hook, nn.TransformerEncoderLayer calls its layers, and with them this grid.

    Its fused path, taken without gradients, reads their weights alone.
    """
