"""Low rank: a weight matrix as the product of two thin ones."""

from __future__ import annotations

import torch
from torch import Tensor


def split_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors of the best rank-`rank` approximation: matrix ≈ up @ down.

    Shapes: matrix [out, in] -> down [rank, in], up [out, rank]; both carry the square root of the singular values, so
    neither is much larger than the other.
    Source: Eckart, Young 1936, "The approximation of one matrix by another of lower rank".
    """
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * v[:rank]).to(matrix), (u[:, :rank] * root).to(matrix)


def rank_for_energy(matrix: Tensor, energy: float) -> int:
    """The least rank whose singular values hold the fraction `energy` of the sum of squares.

    Shapes: matrix [out, in].
    """
    squares = torch.linalg.svdvals(matrix.double()).square()
    if not float(squares.sum()) > 0:
        return 1
    fractions = squares.cumsum(0) / squares.sum()
    return min(int((fractions < energy - 1e-12).sum()) + 1, squares.numel())
