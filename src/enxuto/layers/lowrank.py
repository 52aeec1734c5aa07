"""A layer as thin ones in a row: `down` to few channels, `up` to the outputs, and for Tucker and CP a `core` between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from enxuto.functional.cp import split_cp
from enxuto.functional.kronecker import split_kronecker
from enxuto.functional.lowrank import split_rank
from enxuto.functional.tucker import split_tucker


def _of(half: str, name: str) -> Any:
    """What the whole layer calls `name`, as one of its parts has it."""
    return property(lambda self: getattr(getattr(self, half), name), doc=f"{name} of the whole layer.")


class _Thin(nn.Sequential):
    """What a network may still ask of the layer that thin ones have replaced, where that has one answer.

    A kind says which of the layer's numbers it is built from, by which ranks, and how a weight becomes those of its parts.
    """

    down: Any
    up: Any
    sizes: ClassVar[tuple[str, ...]]
    ranks: ClassVar[tuple[str, ...]] = ("rank",)
    last: ClassVar[str] = "up"  # the part that has the bias, "" for the layer itself
    bias: Any

    @property
    def wide(self) -> nn.Module:
        """The part that has the kernel."""
        part: nn.Module = getattr(self, "core", self.down)
        return part

    @property
    def fits(self) -> bool:
        """True when each part takes what the one before it gives, and what is told beside them agrees with them."""
        parts: list[Any] = [*self.children()]
        return all(one.out_channels == other.in_channels for one, other in pairwise(parts))

    @property
    def weight(self) -> Tensor:
        """The whole weight, for a network that asks for its dtype or its size; made anew at each call."""
        whole: Tensor = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return whole.view(-1, *self.down.weight.shape[1:])

    @classmethod
    def of(cls, layer: nn.Module, ranks: Sequence[int], square: Tensor | None = None) -> Self:
        """The best approximation of a layer (groups=1) with these ranks that is found: of its weight, or of its outputs by the
        moments of its inputs."""
        whole: Any = layer
        told = {name: getattr(whole, name) for name in cls.sizes} | dict(zip(cls.ranks, ranks, strict=True))
        kind: Any = cls
        made = kind(**told, bias=whole.bias is not None).to(whole.weight)
        for part, weight in zip(made, cls._split(whole.weight.detach(), ranks, square), strict=True):
            part.weight.data.copy_(weight.view_as(part.weight))
        if made.bias is not None:
            made.bias.data.copy_(whole.bias.detach())
        found: Self = made
        return found

    @staticmethod
    def _split(weight: Tensor, ranks: Sequence[int], square: Tensor | None) -> tuple[Tensor, ...]:
        """The weights of the parts, in their order."""
        return split_rank(weight.flatten(1), ranks[0], square)


class LowRankLinear(_Thin):
    """`up(down(x))`: a Linear of in × out weights as rank × (in + out). Shapes as nn.Linear."""

    sizes = ("in_features", "out_features")
    in_features, out_features, rank = _of("down", "in_features"), _of("up", "out_features"), _of("up", "in_features")
    bias = _of("up", "bias")

    @property
    def fits(self) -> bool:
        """As of the others."""
        return bool(self.down.out_features == self.up.in_features)

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)


class _ThinConv(_Thin):
    """A convolution as thin ones. Shapes as nn.Conv1d/2d/3d."""

    sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    groups = 1
    bias = _of("up", "bias")
    in_channels, out_channels, rank = _of("down", "in_channels"), _of("up", "out_channels"), _of("up", "in_channels")
    kernel_size, stride, padding = _of("wide", "kernel_size"), _of("wide", "stride"), _of("wide", "padding")
    dilation, padding_mode = _of("wide", "dilation"), _of("wide", "padding_mode")


class LowRankConv(_ThinConv):
    """`up(down(x))`: a convolution to `rank` channels, then a 1x1 convolution to the outputs."""

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
        self.down = kind(in_channels, rank, kernel_size, stride, padding, dilation, bias=False, padding_mode=padding_mode)
        self.up = kind(rank, out_channels, 1, bias=bias)


class TuckerConv(_ThinConv):
    """`up(core(down(x)))`: 1x1 to `in_rank` channels, the kernel from these to `rank`, 1x1 to the outputs."""

    core: Any
    ranks = ("in_rank", "rank")
    in_rank = _of("core", "in_channels")

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

    @staticmethod
    def _split(weight: Tensor, ranks: Sequence[int], square: Tensor | None) -> tuple[Tensor, ...]:
        parts = split_tucker(weight.flatten(2), (ranks[0], ranks[1]), square)
        return parts.down, parts.core, parts.up


class CPConv(_ThinConv):
    """`up(core(down(x)))`: 1x1 to `rank` channels, the kernel of each of these alone, 1x1 to the outputs."""

    core: Any

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
        self.down = kind(in_channels, rank, 1, bias=False)
        self.core = kind(rank, rank, kernel_size, stride, padding, dilation, rank, bias=False, padding_mode=padding_mode)
        self.up = kind(rank, out_channels, 1, bias=bias)

    @property
    def weight(self) -> Tensor:
        """The whole weight, as of the others."""
        down, up = self.down.weight.flatten(1), self.up.weight.flatten(1)
        return torch.einsum("or,r...,ri->oi...", up, self.core.weight.squeeze(1), down)

    @staticmethod
    def _split(weight: Tensor, ranks: Sequence[int], square: Tensor | None) -> tuple[Tensor, ...]:
        return split_cp(weight.flatten(2), ranks[0], square)


class KroneckerLinear(_Thin):
    """A Linear of which the weight is the sum of `rank` products A ⊗ B: `down` multiplies each block of inputs by every B [rows,
    columns], `up` what came of all blocks by the A. Shapes as nn.Linear."""

    sizes = ("in_features", "out_features")
    ranks = ("rank", "rows", "columns")
    last = ""
    columns = _of("down", "in_features")

    def __init__(self, in_features: int, out_features: int, rank: int, rows: int, columns: int, bias: bool = True) -> None:
        super().__init__()
        if out_features % rows or in_features % columns:
            raise ValueError(f"rows={rows} and columns={columns} do not divide {out_features} outputs and {in_features} inputs")
        self.rows = rows
        self.down = nn.Linear(columns, rank * rows, bias=False)
        self.up = nn.Linear(rank * (in_features // columns), out_features // rows, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def rank(self) -> int:
        """How many products there are."""
        return int(self.down.out_features) // self.rows

    @property
    def in_features(self) -> int:
        """As of the whole layer."""
        return int(self.up.in_features) // self.rank * int(self.columns)

    @property
    def out_features(self) -> int:
        """As of the whole layer."""
        return int(self.up.out_features) * self.rows

    @property
    def fits(self) -> bool:
        rank, left = divmod(self.down.out_features, self.rows)
        whole = rank > 0 and not left and not self.up.in_features % rank
        return whole and (self.bias is None or len(self.bias) == self.out_features)

    @property
    def weight(self) -> Tensor:
        """The whole weight, as of the others."""
        inner = self.down.weight.unflatten(0, (self.rank, self.rows))
        outer = self.up.weight.unflatten(1, (self.rank, -1))
        return torch.einsum("atc,tbd->abcd", outer, inner).flatten(2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear."""
        inner = self.down(x.unflatten(-1, (-1, self.columns))).unflatten(-1, (self.rank, self.rows))
        outer = self.up(inner.transpose(-1, -3).flatten(-2))
        outputs = outer.transpose(-1, -2).flatten(-2)
        return outputs if self.bias is None else outputs + self.bias

    @staticmethod
    def _split(weight: Tensor, ranks: Sequence[int], square: Tensor | None) -> tuple[Tensor, ...]:
        inner, outer = split_kronecker(weight, ranks[0], (ranks[1], ranks[2]), square)
        return inner.flatten(0, 1), outer.transpose(0, 1).flatten(1)


THIN = (LowRankLinear, LowRankConv, TuckerConv, CPConv, KroneckerLinear)


def _convolution(kernel_size: tuple[int, ...]) -> Any:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel_size) - 1]  # the three take tuples of 1, 2, 3 numbers
