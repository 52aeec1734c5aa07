"""A layer as two thin ones in a row: `down` to `rank` channels, `up` to the outputs."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from enxuto.functional.lowrank import split_rank

Thin = TypeVar("Thin", "LowRankLinear", "LowRankConv")


def _of(half: str, name: str) -> Any:
    """What the whole layer calls `name`, as one of the two halves has it."""
    return property(lambda self: getattr(self.get_submodule(half), name), doc=f"{name} of the whole layer.")


class _Thin(nn.Sequential):
    """What a network may still ask of the layer that two thin ones have replaced, where that has one answer."""

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
    def of(cls, layer: nn.Linear, rank: int) -> LowRankLinear:
        """The best approximation of a layer with this rank."""
        made = cls(layer.in_features, layer.out_features, rank, layer.bias is not None).to(layer.weight)
        down, up = split_rank(layer.weight.detach(), rank)
        return _filled(made, down, up, layer.bias)


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
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel_size) - 1]  # the three take tuples of 1, 2, 3 numbers
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

    @classmethod
    def of(cls, layer: nn.Conv2d, rank: int) -> LowRankConv:
        """The best approximation of a convolution (groups=1) with this rank."""
        made = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, rank, layer.stride, layer.padding,
            layer.dilation, layer.padding_mode, layer.bias is not None,
        ).to(layer.weight)  # fmt: skip
        down, up = split_rank(layer.weight.detach().flatten(1), rank)
        return _filled(made, down, up, layer.bias)


def _filled(made: Thin, down: Tensor, up: Tensor, bias: Tensor | None) -> Thin:
    made.down.weight.data.copy_(down.view_as(made.down.weight))
    made.up.weight.data.copy_(up.view_as(made.up.weight))
    if bias is not None and made.up.bias is not None:
        made.up.bias.data.copy_(bias.detach())
    return made
