"""Sums of x xᵀ, of which the half on and below the diagonal is made and held: the other half is the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 256  # rows: products of fewer are slower than the numbers that they save


class Symmetric:
    """Symmetric matrices, block of rows by block of rows up to the diagonal. Shapes: blocks [groups, rows, stop]."""

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self.blocks = blocks

    @classmethod
    def of(cls, inputs: Tensor) -> Symmetric:
        """The sum of x xᵀ over the inputs. Shapes: [groups, n, in]."""
        turned = inputs.transpose(1, 2)
        return cls([turned[:, rows] @ inputs[:, :, : rows.stop] for rows in _rows(inputs.shape[2])])

    def add_(self, other: Symmetric, weight: float) -> None:
        """Adds so many times the other."""
        for block, more in zip(self.blocks, other.blocks, strict=True):
            block.add_(more, alpha=weight)

    def add_inputs_(self, inputs: Tensor, weight: float) -> None:
        """Adds so many times the sum of x xᵀ over the inputs. Shapes: [groups, n, in]."""
        turned = inputs.transpose(1, 2)
        for block, rows in zip(self.blocks, _rows(inputs.shape[2]), strict=True):
            block.baddbmm_(turned[:, rows], inputs[:, :, : rows.stop], alpha=weight)

    def mul_(self, weight: float) -> Symmetric:
        """So many times itself."""
        for block in self.blocks:
            block.mul_(weight)
        return self

    def aminmax(self) -> tuple[Tensor, Tensor]:
        """The least and the largest number."""
        least, largest = zip(*(block.aminmax() for block in self.blocks), strict=True)
        return torch.stack(least).min(), torch.stack(largest).max()

    def apart(self) -> float:
        """The square of what lies off the diagonal."""
        size = max(float(torch.linalg.vector_norm(block, torch.inf)) for block in self.blocks) or 1.0
        found = 0.0
        for block in self.blocks:
            own = block[:, :, block.shape[2] - block.shape[1] :]
            beside = block[:, :, : block.shape[2] - block.shape[1]]
            found += 2 * _square(beside, size) + _square(own, size)
            found -= float(own.diagonal(dim1=1, dim2=2).double().div(size).square().sum())
        return max(0.0, found) * size**2

    def whole(self) -> Tensor:
        """Both halves. Shapes: -> [groups, in, in]."""
        groups, _, width = self.blocks[-1].shape
        found = self.blocks[0].new_empty(groups, width, width)
        for block, rows in zip(self.blocks, _rows(width), strict=True):
            found[:, rows, : rows.stop] = block
            found[:, : rows.stop, rows] = block.transpose(1, 2)
        return found


def symmetric_bytes(groups: int, width: int) -> int:
    """Bytes of what is held of such matrices in float32.

    >>> symmetric_bytes(1, 1024) / (4 * 1024**2)
    0.625
    """
    return 4 * groups * sum((rows.stop - rows.start) * rows.stop for rows in _rows(width))


def _rows(width: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK))


def _square(values: Tensor, size: float) -> float:
    """The sum of squares, in parts of `size`."""
    return float((values / size).square_().sum(dtype=torch.float64))
