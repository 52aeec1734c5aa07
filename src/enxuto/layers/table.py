"""The table grid: each code is the index of one of a few shared values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enxuto.functional.affine import PIECE
from enxuto.functional.table import fit_codebook, nearest_entries, shared_values
from enxuto.layers.grids import CodedTensor, Grid, Values, check_bits, finite
from enxuto.layers.packing import pack


@dataclass(frozen=True)
class Table(Grid):
    """A table grid: each code is the index of one of at most 2^bits shared values; zero is one of them from 2 bits on.

    Raises: RangeError if bits is outside 1..8.
    """

    bits: int = 4
    shares = True

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def encode(self, weight: Tensor, path: str = "") -> TableTensor:
        """The weight on a codebook fitted to it."""
        values = finite(weight, path)
        zero = self.bits > 1 or bool((values == 0).any())
        return TableTensor.of(self, weight, fit_codebook(values, 2**self.bits, zero=zero))

    def learned(self, base: Tensor, change: Tensor) -> Tensor:
        learned = base + base.std(unbiased=False) * change * (base != 0)  # zero stays zero
        return learned + (shipped_entries(learned.detach()) - learned.detach())

    def seen(self, weight: Tensor, learned: Tensor) -> Tensor:
        return shared_values(weight, learned)

    def coded(self, weight: Tensor, learned: Tensor) -> TableTensor:
        return TableTensor.of(self, weight, learned)


class TableTensor(CodedTensor):
    """Codes and a codebook: value = codebook[code]."""

    kind = "table"
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

    def learning(self) -> Tensor:
        entries = self.codebook.detach().float()  # fewer values than codes: the last entry stands for the rest
        return torch.cat([entries, entries[-1:].expand(2**self.grid.bits - entries.numel())])

    def scaled(self, values: Tensor, gain: Tensor) -> TableTensor | None:
        return TableTensor.of(self.grid, values, self.codebook * gain.to(self.codebook)) if gain.numel() == 1 else None

    def told(self) -> list[Any]:
        return [self.kind, self.grid.bits]

    @classmethod
    def untold(cls, arguments: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype) -> TableTensor:
        return cls(Table(*arguments), shape, dtype)

    def could_be(self, leaf: str, shape: tuple[int, ...], dtype: torch.dtype, symbols: int | None) -> bool:
        if leaf == "codes":
            return super().could_be(leaf, shape, dtype, symbols)
        return (
            (leaf == "codebook" and symbols is None and dtype in (torch.float16, torch.float32))
            and len(shape) == 1
            and 0 < shape[0] <= 2**self.grid.bits
        )

    def put_(self, leaf: str, tensor: Tensor) -> None:
        super().put_(leaf, tensor.float() if leaf == "codebook" else tensor)


def shipped_entries(entries: Tensor) -> Tensor:
    """The entries of a codebook as a tensor keeps them: of two bytes each in the file, where those hold them well enough."""
    return entries.half().float() if _fit_in_half(entries.unique()) else entries


def _fit_in_half(entries: Tensor) -> bool:
    """True when two bytes hold every entry with an error far below the distance to its neighbours."""
    half = entries.half()
    normal = ((half.abs() >= 6.2e-5) | (entries == 0)) & torch.isfinite(half)
    gaps = torch.nn.functional.pad(entries.diff(), (1, 1), value=torch.inf)
    near = (half.float() - entries).abs() <= torch.minimum(gaps[1:], gaps[:-1]) / 8
    return bool((normal & near).all())
