"""Kronecker sums: a large matrix as the sum of a few products A ⊗ B, of which each has an outer and an inner matrix.

Cut into blocks of one size and laid out with a row for each block, a sum of `terms` products is a matrix of that rank: the
nearest one is a truncated SVD. It is a tensor train of two cores as well. The inner matrices are the leading singular vectors, of
inputs whitened by their second moments along either axis of the blocks; the outer ones are the regression of the outputs on what
the inner ones let through.
Source: Van Loan, Pitsianis 1993, "Approximation with Kronecker products". Deviation: it knows no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from enxuto.functional.lowrank import leading, outputs_square, times

LAST = 1e-6  # of the mean of the diagonal, in the regression of the outputs
TINY = 1e-300


def split_kronecker(matrix: Tensor, terms: int, block: tuple[int, int], square: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The inner and the outer matrices, of equal norms, of so many products: matrix ≈ the sum of outer[t] ⊗ inner[t].

    Shapes: matrix [out, in], square [in, in] -> inner [terms, *block], outer [terms, out / block[0], in / block[1]].
    """
    inner, outer, _ = _split(matrix, terms, block, square)
    scale = (outer.norm() / inner.norm().clamp_min(TINY)).sqrt().clamp_min(TINY)
    return (inner * scale).to(matrix).contiguous(), (outer / scale).to(matrix).contiguous()


def lost_by_products(
    matrix: Tensor, terms: Sequence[int], block: tuple[int, int], square: Tensor | None = None
) -> tuple[list[float], float]:
    """What the outputs lose with each of these numbers of products, and without any, summed squares.

    Shapes: matrix [out, in], square [in, in].
    """
    whole = float(outputs_square(matrix, square).diagonal().sum())
    return [max(0.0, whole - _split(matrix, count, block, square)[2]) for count in terms], whole


def most_products(out: int, inputs: int, block: tuple[int, int]) -> int:
    """So many products are the matrix itself."""
    size = block[0] * block[1]
    return min(size, out * inputs // size)


def _split(matrix: Tensor, terms: int, block: tuple[int, int], square: Tensor | None) -> tuple[Tensor, Tensor, float]:
    rows, columns = block
    blocks = matrix.double().view(len(matrix) // rows, rows, -1, columns)
    outer_root, inner_root = _roots(square, columns)
    heard = blocks if square is None else torch.einsum("abcd,ce,df->abef", blocks, outer_root, inner_root)
    laid = heard.transpose(1, 2).reshape(-1, rows * columns)
    inner = leading(laid.T @ laid, terms).T.reshape(-1, rows, columns)
    if square is not None:
        inner = torch.linalg.solve_triangular(inner_root, inner, upper=False, left=False)
    return inner, *_regressed(matrix, inner, square)


def _roots(square: Tensor | None, columns: int) -> tuple[Tensor, Tensor]:
    """The lower roots of the mean moments of the blocks, and of the inputs within one."""
    if square is None:
        return torch.empty(0), torch.empty(0)
    parts = square.view(-1, columns, len(square) // columns, columns).double()
    means = torch.einsum("cded->ce", parts) / columns, torch.einsum("cdcf->df", parts) / len(parts)
    return torch.linalg.cholesky(means[0]), torch.linalg.cholesky(means[1])


def _regressed(matrix: Tensor, inner: Tensor, square: Tensor | None) -> tuple[Tensor, float]:
    """The outer matrices that explain most of the outputs, and how much that is: row by row of the blocks the features are what
    the inner matrices make of each block's inputs."""
    terms, rows, columns = inner.shape
    count = matrix.shape[1] // columns
    both = torch.zeros(terms * count, terms * count).to(inner)
    crossed = torch.zeros(terms * count, len(matrix) // rows).to(inner)
    for row in range(rows):
        features = torch.einsum("td,ce->tced", inner[:, row], torch.eye(count).to(inner)).reshape(terms * count, -1)
        seen = features if square is None else times(features, square)
        both += seen @ features.T
        crossed += seen @ matrix[row::rows].double().T
    both.diagonal().add_(LAST * both.diagonal().mean() + TINY)
    outer = torch.cholesky_solve(crossed, torch.linalg.cholesky(both))
    explained = float((2 * crossed - both @ outer).mul(outer).sum())
    return outer.T.reshape(-1, terms, count).transpose(0, 1), explained
