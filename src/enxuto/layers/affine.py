"""The affine grid: whole multiples of a scale, one for a tensor, for each channel or for each group of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from enxuto.checks import named, whole
from enxuto.errors import RangeError, ShapeError
from enxuto.functional.affine import absmax_scale, fit_scale, largest_code, learned_rounding, learned_steps, short, to_codes
from enxuto.layers.grids import CodedTensor, Grid, Values, check_bits, finite
from enxuto.layers.packing import pack, pieces

Per = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class Affine(Grid):
    """A symmetric affine grid: codes of `bits` bits, one scale per tensor, per channel (row) or per group of a row.

    Raises: RangeError if bits is outside 1..8, per is unknown, or group is not positive.
    """

    bits: int = 8
    per: Per = "channel"
    group: int = 64
    fit: Literal["mse", "absmax"] = "mse"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.per not in ("tensor", "channel", "group"):
            raise RangeError(f"per={self.per!r} is not known; use 'tensor', 'channel' or 'group'.")
        if not whole(self.group, 1):
            raise RangeError(f"{named('group', self.group)} is not a positive number of weights; use for example 64.")
        if self.fit not in ("mse", "absmax"):
            raise RangeError(f"fit={self.fit!r} is not known; use 'mse' or 'absmax'.")

    def rows(self, weight: Tensor, path: str = "") -> Tensor:
        """The weight with one row for each scale.

        Shapes: [out, ...] -> [scales, weights per scale].
        Raises: ShapeError if the group does not divide the rows, or an exact zero meets one bit.
        """
        if self.bits == 1 and bool((weight == 0).any()):
            share = float((weight == 0).float().mean())
            raise ShapeError(
                f"bits=1 has no code for zero, but {share:.1%} of the weights of '{path}' are exactly zero; use bits=2 (ternary)."
            )
        if self.per == "tensor" or weight.ndim == 0:
            return weight.reshape(1, -1)
        if self.per == "channel":
            return weight.reshape(weight.shape[0], -1)
        inputs = weight.numel() // max(1, weight.shape[0])
        if inputs % self.group:
            divisors = [d for d in range(2, min(inputs, 512) + 1) if inputs % d == 0]
            shown = ", ".join(map(str, divisors[-6:])) or "none"
            raise ShapeError(
                f"group={self.group} does not divide the {inputs} inputs of '{path}'; use one of {shown}, or per='channel'."
            )
        return weight.reshape(-1, self.group)

    def suited(self, weight: Tensor) -> Affine:
        """This grid, or where its group does not divide the inputs, one with the next smaller group that does, at least half as
        large; else a scale per channel.

        >>> Affine(4, "group", 64).suited(torch.zeros(10, 784)).group, Affine(4, "group", 64).suited(torch.zeros(8, 27)).per
        (56, 'channel')
        """
        inputs = weight.numel() // max(1, weight.shape[0]) if weight.ndim else 1
        if self.per != "group" or inputs % self.group == 0:
            return self
        near = next((size for size in range(self.group, (self.group - 1) // 2, -1) if inputs % size == 0), 0)
        return replace(self, group=near) if near else replace(self, per="channel")

    def unsuited(self, weight: Tensor) -> str:
        other = self.suited(weight)
        if other == self:
            return ""
        instead = f"in groups of {other.group}" if other.per == "group" else "per channel"
        return f"{instead}: {self.group} does not divide {math.prod(weight.shape[1:])} inputs"

    def scales(self, rows: Tensor) -> Tensor:
        """The scale of each row; in bfloat16 for groups, so that scales stay small beside the codes."""
        scale = (fit_scale if self.fit == "mse" or self.bits == 1 else absmax_scale)(rows, self.bits)
        return shipped_scale(self, scale)

    def encode(self, weight: Tensor, path: str = "") -> AffineTensor:
        """The weight on this grid."""
        rows = self.rows(finite(weight, path), path)
        return AffineTensor.of(self, weight, self.scales(rows))

    def encode_together(self, weights: Sequence[tuple[Tensor, str]]) -> list[AffineTensor]:
        """All weights, of which each has one scale, with the same one."""
        rows = [self.rows(finite(weight, path), path) for weight, path in weights]
        if self.fit == "absmax" and self.bits > 1:  # the widest row decides alone
            rows = [max(rows, key=lambda row: float(row.abs().amax()) if row.numel() else 0.0)] if rows else []
        scale = self.scales(torch.cat(rows, dim=1)) if rows else torch.empty(0)
        return [AffineTensor.of(self, weight, scale) for weight, _ in weights]

    def learned(self, base: Tensor, change: Tensor) -> Tensor:
        learned = base * change.exp()
        return learned + (shipped_scale(self, learned.detach()).float() - learned.detach())

    def seen(self, weight: Tensor, learned: Tensor) -> Tensor:
        return learned_rounding(weight.reshape(learned.numel(), -1), learned, self.bits).view_as(weight)

    def steps(self, weight: Tensor, learned: Tensor) -> Tensor | None:
        if self.bits == 1:
            return None  # no code for zero
        return learned_steps(weight.reshape(learned.numel(), -1), learned, self.bits).view_as(weight)

    def coded(self, weight: Tensor, learned: Tensor) -> AffineTensor:
        return AffineTensor.of(self, weight, learned)


class AffineTensor(CodedTensor):
    """Codes and scales: value = (2·code − 1)·scale for one bit, else (code − largest)·scale."""

    kind = "affine"
    grid: Affine
    scale: Tensor

    def __init__(self, grid: Affine, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(grid, shape, dtype)
        rows = {"tensor": 1, "channel": self.shape[0] if self.shape else 1}.get(grid.per, 0)
        if not rows and math.prod(self.shape) % grid.group:
            raise ShapeError(f"group={grid.group} does not divide the {math.prod(self.shape)} weights; use one that does.")
        rows = rows or math.prod(self.shape) // grid.group
        self.register_buffer("scale", torch.empty(rows, dtype=torch.bfloat16 if grid.per == "group" else torch.float32))

    @classmethod
    def of(cls, grid: Affine, weight: Tensor, scale: Tensor) -> AffineTensor:
        """The weight with the given scales [scales]."""
        made = cls(grid, weight.shape, weight.dtype).to(weight.device)
        made.scale = shipped_scale(grid, scale.detach())
        rows, scales = weight.detach().reshape(made.scale.numel(), -1), made.scale.float()
        codes = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
        for few, part in pieces(*rows.shape):
            signed = to_codes(rows[few, part].float(), scales[few], grid.bits)
            codes[few, part] = ((signed + 1) / 2 if grid.bits == 1 else signed + largest_code(grid.bits)).to(torch.uint8)
        made.codes = pack(codes.flatten(), grid.bits)
        return made

    @property
    def symbols(self) -> int:
        return 2 if self.grid.bits == 1 else 2 * largest_code(self.grid.bits) + 1

    def signed(self) -> Tensor:
        """The codes around zero: int32, in the shape of the weight."""
        return self._signed(self.integers())

    def _signed(self, codes: Tensor) -> Tensor:
        return codes * 2 - 1 if self.grid.bits == 1 else codes - largest_code(self.grid.bits)

    def _rows(self) -> int:
        return self.scale.numel()

    def _decoded(self, codes: Tensor, rows: slice) -> Tensor:
        return self._signed(codes).to(torch.float32) * self.scale[rows].to(torch.float32)[:, None]

    def values(self) -> Values:
        scale = self.scale.float()[:, None].expand(-1, math.prod(self.shape) // self.scale.numel())
        return Values(scale.reshape(self.shape), 0 if self.grid.bits == 1 else largest_code(self.grid.bits))

    def recode(self, weight: Tensor) -> AffineTensor:
        self.grid.rows(weight)  # refuses a zero where one bit has no code for it
        return AffineTensor.of(self.grid, weight, self.scale)

    def take(self, dim: int, keep: Tensor, path: str = "") -> CodedTensor:
        weight = self().index_select(dim, keep)
        if self.grid.per == "tensor" or (self.grid.per == "channel" and dim > 0):
            return AffineTensor.of(self.grid, weight, self.scale)
        if dim == 0:
            scale = self.scale.view(self.shape[0], -1).index_select(0, keep).flatten()
            return AffineTensor.of(self.grid, weight, scale)
        return self.grid.suited(weight).encode(weight, path)  # groups moved: their scales are fitted again

    def learning(self) -> Tensor:
        return self.scale.detach().float().clone()

    def scaled(self, values: Tensor, gain: Tensor) -> AffineTensor | None:
        if self.grid.bits == 1 and not bool(gain.all()):
            return None  # one bit has no code for zero
        alone = self.grid.per == "tensor" and gain.numel() > 1
        rows = self.scale.float().view(-1, 1) if alone else self.scale.float().view(gain.numel(), -1)
        grid = replace(self.grid, per="channel") if alone else self.grid
        scale = (rows * gain.float().abs()[:, None]).flatten()
        return AffineTensor.of(grid, values, torch.where(scale > 0, scale, 1.0))

    @property
    def rows_alone(self) -> bool:
        return self.grid.per != "tensor" and len(self.shape) > 1

    def integer_scales(self) -> Tensor | None:
        return None if self.grid.per == "group" else self.scale

    def told(self) -> list[Any]:
        grid, plain = self.grid, Affine()
        told = [self.kind, grid.bits, grid.per, grid.group, grid.fit]
        return told if grid.fit != plain.fit else told[: 4 if grid.per == "group" else 3]

    @classmethod
    def untold(cls, arguments: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype) -> AffineTensor:
        return cls(Affine(*arguments), shape, dtype)

    def could_be(self, leaf: str, shape: tuple[int, ...], dtype: torch.dtype, symbols: int | None) -> bool:
        if leaf == "codes":
            return super().could_be(leaf, shape, dtype, symbols) and symbols == self.symbols
        return leaf == "scale" and symbols is None and shape == tuple(self.scale.shape) and dtype == self.scale.dtype


def shipped_scale(grid: Affine, scale: Tensor) -> Tensor:
    """The scales as a tensor keeps them: bfloat16 for groups, else float32 with 16 significant bits."""
    return scale.to(torch.bfloat16) if grid.per == "group" else short(scale.float())
