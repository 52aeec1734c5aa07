"""What a grid of weights is: integers, and what they mean. `affine.py` and `table.py` are the grids there are.

A grid is a description, frozen and comparable; `encode` makes the tensor module that keeps the codes on it. What steps, training
and files ask of either is said here, and nobody asks which grid it is. Codes are packed: 1, 2, 4 or 8 bits each in memory. The
entropy coder, which makes them smaller still, works only in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from enxuto.checks import named, whole
from enxuto.errors import RangeError
from enxuto.functional.affine import PIECE
from enxuto.layers.kept import recalled
from enxuto.layers.packing import pack, pieces, storage_bits, unpack


class Grid:
    """What codes of `bits` bits mean; a frozen dataclass."""

    bits: int
    shares = False  # True where a weight has few values in all, which a grid of as many codes lets stay

    def encode(self, weight: Tensor, path: str = "") -> CodedTensor:
        """The weight on this grid, fitted to it. Raises: RangeError when it is not finite."""
        raise NotImplementedError

    def encode_together(self, weights: Sequence[tuple[Tensor, str]]) -> Iterable[CodedTensor]:
        """All weights, on one grid where this kind has that."""
        return [self.suited(weight).encode(weight, path) for weight, path in weights]

    def suited(self, weight: Tensor) -> Grid:
        """The grid of this kind that a weight of this shape can have."""
        return self

    def unsuited(self, weight: Tensor) -> str:
        """What is said where `suited` gives another; empty where it is this one."""
        return ""

    def learned(self, base: Tensor, change: Tensor) -> Tensor:
        """What `CodedTensor.learning` gave, as far as it has changed and with the values that ship; gradients reach `change`."""
        raise NotImplementedError

    def seen(self, weight: Tensor, learned: Tensor) -> Tensor:
        """The weight on the learned grid; gradients go straight through. Shapes: float32 as the weight."""
        raise NotImplementedError

    def steps(self, weight: Tensor, learned: Tensor) -> Tensor | None:
        """Where between codes each value lies, 0 at the code of zero; gradients reach both. None where codes are no multiples.

        Shapes: float32 as the weight.
        """
        return None

    def coded(self, weight: Tensor, learned: Tensor) -> CodedTensor:
        """The nearest codes on the learned grid."""
        raise NotImplementedError


def check_bits(bits: int, name: str = "bits") -> None:
    """Raises RangeError, with the name of the argument, if bits is no whole number from 1 to 8."""
    if not whole(bits, 1, 8):
        raise RangeError(f"{named(name, bits)} is outside 1..8; use for example 4 or 8.")


def finite(weight: Tensor, path: str) -> Tensor:
    """The values in 32 bits. Raises: RangeError when one of them is not finite there."""
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

    kind: ClassVar[str]  # what a file calls it
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

    def learning(self) -> Tensor:
        """What of the grid learns while training, in float32: a tensor of its own."""
        raise NotImplementedError

    def scaled(self, values: Tensor, gain: Tensor) -> CodedTensor | None:
        """The same codes where `values` are the weight times `gain` for each row, or their negatives; None where no grid can.

        Shapes: gain [out], or [1] for all of them.
        """
        return None

    @property
    def rows_alone(self) -> bool:
        """True where what codes mean is each row's own, so that `scaled` keeps the grid."""
        return False

    def integer_scales(self) -> Tensor | None:
        """Scales [1] or [out] of which each value is a whole multiple; None where there are none."""
        return None

    def told(self) -> list[Any]:
        """What a file says of the grid: its kind and the arguments that `untold` makes it of again."""
        raise NotImplementedError

    @classmethod
    def untold(cls, arguments: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype) -> CodedTensor:
        """A tensor without values on the grid that a file tells of. Raises: what the grid raises for arguments that make none."""
        raise NotImplementedError

    def could_be(self, leaf: str, shape: tuple[int, ...], dtype: torch.dtype, symbols: int | None) -> bool:
        """True when a buffer of this name may look like this in a file; codes come there one a byte, with their number."""
        fits = leaf == "codes" and shape == self.shape and dtype == torch.uint8
        return fits and symbols is not None and symbols <= 2**self.grid.bits

    def put_(self, leaf: str, tensor: Tensor) -> None:
        """Takes a buffer as a file holds it."""
        self._buffers[leaf] = pack(tensor.flatten(), self.grid.bits) if leaf == "codes" else tensor

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.grid}"
