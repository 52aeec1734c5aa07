"""A layer as thin ones in a row: `down` to few channels, `up` to the outputs, and for Tucker a `core` between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from enxuto.functional.lowrank import split_rank
from enxuto.functional.tucker import split_tucker


def _of(half: str, name: str) -> Any:
    """What the whole layer calls `name`, as one of its parts has it."""
    return property(lambda self: getattr(self.get_submodule(half), name), doc=f"{name} of the whole layer.")


class _Thin(nn.Sequential):
    """What a network may still ask of the layer that thin ones have replaced, where that has one answer."""

    down: Any
    up: Any
    bias = _of("up", "bias")

    @property
    def weight(self) -> Tensor:
        """The whole weight, for a network that asks for its dtype or its size; made anew at each call."""
        whole: Tensor = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return whole.view(-1, *self.down.weight.shape[1:])


class LowRankLinear(_Thin):
    """`up(down(x))`: a Linear of in × out weights as rank × (in + out). Shapes as nn.Linear."""

    in_features, out_features = _of("down", "in_features"), _of("up", "out_features")

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    @classmethod
    def of(cls, layer: nn.Linear, rank: int, square: Tensor | None = None) -> LowRankLinear:
        """The best approximation of a layer with this rank: of its weight, or of its outputs by the moments of its inputs."""
        made = cls(layer.in_features, layer.out_features, rank, layer.bias is not None).to(layer.weight)
        down, up = split_rank(layer.weight.detach(), rank, square)
        _fill_({made.down: down, made.up: up}, made.up, layer.bias)
        return made


class LowRankConv(_Thin):
    """`up(down(x))`: a convolution to `rank` channels, then a 1x1 convolution to the outputs. Shapes as nn.Conv1d/2d/3d."""

    in_channels, out_channels, groups = _of("down", "in_channels"), _of("up", "out_channels"), _of("down", "groups")
    kernel_size, stride, padding = _of("down", "kernel_size"), _of("down", "stride"), _of("down", "padding")
    dilation, padding_mode = _of("down", "dilation"), _of("down", "padding_mode")

    def __init__(  # noqa: PLR0913  the arguments of a convolution, and the rank
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        rank: int,
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        padding_mode: str = "zeros",
        bias: bool = True,
    ) -> None:
        super().__init__()
        kind = _convolution(kernel_size)
        self.down = kind(
            in_channels,
            rank,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=False,
            padding_mode=padding_mode,
        )
        self.up = kind(rank, out_channels, 1, bias=bias)

    @property
    def wide(self) -> nn.Module:
        """The part that has the kernel."""
        part: nn.Module = self.down
        return part

    @classmethod
    def of(cls, layer: nn.Conv2d, rank: int, square: Tensor | None = None) -> LowRankConv:
        """The best approximation of a convolution (groups=1) with this rank, of its kernel or of its outputs."""
        made = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, rank, layer.stride, layer.padding,
            layer.dilation, layer.padding_mode, layer.bias is not None,
        ).to(layer.weight)  # fmt: skip
        down, up = split_rank(layer.weight.detach().flatten(1), rank, square)
        _fill_({made.down: down, made.up: up}, made.up, layer.bias)
        return made


class TuckerConv(_Thin):
    """`up(core(down(x)))`: 1x1 to `in_rank` channels, the kernel from these to `rank`, 1x1 to the outputs.

    Shapes as nn.Conv1d/2d/3d.
    """

    core: Any
    in_channels, out_channels, groups = _of("down", "in_channels"), _of("up", "out_channels"), _of("core", "groups")
    kernel_size, stride, padding = _of("core", "kernel_size"), _of("core", "stride"), _of("core", "padding")
    dilation, padding_mode = _of("core", "dilation"), _of("core", "padding_mode")

    def __init__(  # noqa: PLR0913  the arguments of a convolution, and two ranks
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        in_rank: int,
        rank: int,
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        padding_mode: str = "zeros",
        bias: bool = True,
    ) -> None:
        super().__init__()
        kind = _convolution(kernel_size)
        self.down = kind(in_channels, in_rank, 1, bias=False)
        self.core = kind(in_rank, rank, kernel_size, stride, padding, dilation, bias=False, padding_mode=padding_mode)
        self.up = kind(rank, out_channels, 1, bias=bias)

    @property
    def weight(self) -> Tensor:
        """The whole weight, as of the others."""
        down, up = self.down.weight.flatten(1), self.up.weight.flatten(1)
        return torch.einsum("or,rs...,si->oi...", up, self.core.weight, down)

    @property
    def wide(self) -> nn.Module:
        """The part that has the kernel."""
        part: nn.Module = self.core
        return part

    @classmethod
    def of(cls, layer: nn.Conv2d, ranks: tuple[int, int], square: Tensor | None = None) -> TuckerConv:
        """An approximation of a convolution (groups=1) with these ranks, near the best, of its kernel or of its outputs."""
        made = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, *ranks, layer.stride, layer.padding,
            layer.dilation, layer.padding_mode, layer.bias is not None,
        ).to(layer.weight)  # fmt: skip
        parts = split_tucker(layer.weight.detach().flatten(2), ranks, square)
        _fill_({made.down: parts.down, made.core: parts.core, made.up: parts.up}, made.up, layer.bias)
        return made


THIN = (LowRankLinear, LowRankConv, TuckerConv)


def _convolution(kernel_size: tuple[int, ...]) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel_size) - 1]  # the three take tuples of 1, 2, 3 numbers


def _fill_(weights: dict[Any, Tensor], last: Any, bias: Tensor | None) -> None:
    for part, weight in weights.items():
        part.weight.data.copy_(weight.view_as(part.weight))
    if bias is not None and last.bias is not None:
        last.bias.data.copy_(bias.detach())
