"""A weight as integers and a grid that says what they mean.

`Affine` and `Table` are descriptions, frozen and comparable; `encode` makes the tensor module that keeps the codes.
Codes are packed: 1, 2, 4 or 8 bits each in memory. The entropy coder, which makes them smaller still, works only in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from enxuto.checks import named, whole
from enxuto.errors import RangeError, ShapeError
from enxuto.functional.affine import PIECE, absmax_scale, fit_scale, largest_code, short, to_codes
from enxuto.functional.table import fit_codebook, nearest_entries
from enxuto.layers.kept import recalled
from enxuto.layers.packing import pack, pieces, storage_bits, unpack

Per = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class Affine:
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

    def scales(self, rows: Tensor) -> Tensor:
        """The scale of each row; in bfloat16 for groups, so that scales stay small beside the codes."""
        scale = (fit_scale if self.fit == "mse" or self.bits == 1 else absmax_scale)(rows, self.bits)
        return shipped_scale(self, scale)

    def encode(self, weight: Tensor, path: str = "") -> AffineTensor:
        """The weight on this grid."""
        rows = self.rows(_finite(weight, path), path)
        return AffineTensor.of(self, weight, self.scales(rows))

    def encode_together(self, weights: Sequence[tuple[Tensor, str]]) -> list[AffineTensor]:
        """All weights, of which each has one scale, with the same one."""
        rows = [self.rows(_finite(weight, path), path) for weight, path in weights]
        if self.fit == "absmax" and self.bits > 1:  # the widest row decides alone
            rows = [max(rows, key=lambda row: float(row.abs().amax()) if row.numel() else 0.0)] if rows else []
        scale = self.scales(torch.cat(rows, dim=1)) if rows else torch.empty(0)
        return [AffineTensor.of(self, weight, scale) for weight, _ in weights]


@dataclass(frozen=True)
class Table:
    """A table grid: each code is the index of one of at most 2^bits shared values; zero is one of them from 2 bits on.

    Raises: RangeError if bits is outside 1..8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def encode(self, weight: Tensor, path: str = "") -> TableTensor:
        """The weight on a codebook fitted to it."""
        values = _finite(weight, path)
        zero = self.bits > 1 or bool((values == 0).any())
        return TableTensor.of(self, weight, fit_codebook(values, 2**self.bits, zero=zero))


Grid = Affine | Table


def shipped_scale(grid: Affine, scale: Tensor) -> Tensor:
    """The scales as a tensor keeps them: bfloat16 for groups, else float32 with 16 significant bits."""
    return scale.to(torch.bfloat16) if grid.per == "group" else short(scale.float())


def shipped_entries(entries: Tensor) -> Tensor:
    """The entries of a codebook as a tensor keeps them: of two bytes each in the file, where those hold them well enough."""
    return entries.half().float() if _fit_in_half(entries.unique()) else entries


def check_bits(bits: int) -> None:
    """Raises RangeError if bits is no whole number from 1 to 8."""
    if not whole(bits, 1, 8):
        raise RangeError(f"{named('bits', bits)} is outside 1..8; use for example 4 or 8.")


def _finite(weight: Tensor, path: str) -> Tensor:
    values = weight.detach().float()
    if values.numel() and not all(map(math.isfinite, map(float, values.aminmax()))):
        raise RangeError(f"'{path}' holds values that are not finite in 32 bits, which no grid covers; train or scale it again.")
    return values


@dataclass(frozen=True, eq=False)
class Values:
    """The values of a grid: multiples of a scale up to `largest` of them, plus or minus the scale where that is 0; or entries.

    Shapes: scale float32 as the weight, expanded; entries float32 [entries] ascending, or None.
    """

    scale: Tensor
    largest: int
    entries: Tensor | None = None

    @property
    def zero(self) -> bool:
        """True where zero is one of them."""
        return self.largest > 0 if self.entries is None else bool((self.entries == 0).any())


class CodedTensor(nn.Module):
    """A weight kept as packed integer codes; calling it decodes. `grid` says how the codes were made."""

    codes: Tensor
    grid: Grid

    def __init__(self, grid: Grid, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.grid, self.shape, self.dtype = grid, tuple(shape), dtype
        count = math.prod(self.shape) * storage_bits(grid.bits)
        self.register_buffer("codes", torch.empty(-(-count // 8), dtype=torch.uint8))

    @property
    def symbols(self) -> int:
        """How many different codes there can be."""
        return 2**self.grid.bits

    @property
    def decoded_bytes(self) -> int:
        """What the weight takes when it is decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def integers(self) -> Tensor:
        """The codes, one each: int32, in the shape of the weight."""
        return unpack(self.codes, self.grid.bits, math.prod(self.shape)).view(self.shape)

    def symbol_bytes(self) -> Tensor:
        """The codes, one a byte: uint8, in the shape of the weight."""
        made = torch.empty(math.prod(self.shape), dtype=torch.uint8, device=self.codes.device)
        for start, few in enumerate(made.split(PIECE)):
            few.copy_(self._some(start * PIECE, few.numel()))
        return made.view(self.shape)

    def _some(self, start: int, count: int) -> Tensor:
        """`count` of the codes from the one at `start` on: int32 [count]."""
        per_byte = 8 // storage_bits(self.grid.bits)
        first, skipped = divmod(start, per_byte)
        packed = self.codes[first : -(-(start + count) // per_byte)]
        return unpack(packed, self.grid.bits, skipped + count)[skipped:]

    def _rows(self) -> int:
        """How many rows, which decode alike, the weight has."""
        return 1

    def _decoded(self, codes: Tensor, rows: slice) -> Tensor:
        """What codes of these rows mean. Shapes: int32 [rows, any] -> float32, the same."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The weight: as it is kept (`coded.keep_decoded_`), else decoded."""
        kept = None if torch.compiler.is_compiling() else recalled(self)
        return self.decoded() if kept is None else kept

    def decoded(self) -> Tensor:
        """The weight, decoded piece by piece, so that no more than the weight itself is held, unless a graph is traced."""
        rows = self._rows()
        width = math.prod(self.shape) // max(1, rows)
        if rows * width <= PIECE or torch.compiler.is_compiling():
            return self._decoded(self.integers().view(rows, width), slice(None)).view(self.shape).to(self.dtype)
        made = torch.empty(rows, width, dtype=self.dtype, device=self.codes.device)
        for few, part in pieces(rows, width):
            target = made[few, part]
            codes = self._some(few.start * width + part.start, target.numel()).view(target.shape)
            target.copy_(self._decoded(codes, few))
        return made.view(self.shape)

    def become_(self, other: CodedTensor) -> None:
        """Takes over the codes and the grid of another tensor of the same kind, for every layer that shares this one."""
        self.grid, self.shape, self.dtype = other.grid, other.shape, other.dtype
        self._buffers.update(other._buffers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows a model to another device or dtype: decoded weights get the dtype, the grid keeps its precision."""
        kept = dict(self._buffers)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self

    def recode(self, weight: Tensor) -> Self:
        """Another weight of the same shape on the very same grid: values on it come back exactly."""
        raise NotImplementedError

    def take(self, dim: int, keep: Tensor, path: str = "") -> CodedTensor:
        """The tensor with only the slices `keep` (indices) along `dim`; the same codes wherever the grid allows it."""
        raise NotImplementedError

    def values(self) -> Values:
        """What values a weight here can have."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.grid}"


class AffineTensor(CodedTensor):
    """Codes and scales: value = (2·code − 1)·scale for one bit, else (code − largest)·scale."""

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


class TableTensor(CodedTensor):
    """Codes and a codebook: value = codebook[code]."""

    grid: Table
    codebook: Tensor

    def __init__(self, grid: Table, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(grid, shape, dtype)
        self.register_buffer("codebook", torch.zeros(2**grid.bits))

    @classmethod
    def of(cls, grid: Table, weight: Tensor, codebook: Tensor) -> TableTensor:
        """The weight with the nearest entries of the given codebook [entries]."""
        made = cls(grid, weight.shape, weight.dtype).to(weight.device)
        entries = made.codebook = shipped_entries(codebook.detach().float().to(weight.device).unique())
        values = weight.detach().flatten()
        codes = [nearest_entries(few.float(), entries).to(torch.uint8) for few in values.split(PIECE)]
        made.codes = pack(torch.cat(codes), grid.bits)
        return made

    @property
    def symbols(self) -> int:
        return max(1, self.codebook.numel())

    def _decoded(self, codes: Tensor, rows: slice) -> Tensor:
        return self.codebook[codes]

    def values(self) -> Values:
        return Values(self.codebook.new_ones(()).expand(self.shape), 1, self.codebook)

    def recode(self, weight: Tensor) -> TableTensor:
        if bool((weight == 0).any()) and not bool((self.codebook == 0).any()):
            return self.grid.encode(weight)  # zero is new: it needs an entry
        return TableTensor.of(self.grid, weight, self.codebook)

    def take(self, dim: int, keep: Tensor, path: str = "") -> CodedTensor:
        return TableTensor.of(self.grid, self().index_select(dim, keep), self.codebook)


def _fit_in_half(entries: Tensor) -> bool:
    """True when two bytes hold every entry with an error far below the distance to its neighbours."""
    half = entries.half()
    normal = ((half.abs() >= 6.2e-5) | (entries == 0)) & torch.isfinite(half)
    gaps = torch.nn.functional.pad(entries.diff(), (1, 1), value=torch.inf)
    near = (half.float() - entries).abs() <= torch.minimum(gaps[1:], gaps[:-1]) / 8
    return bool((normal & near).all())
