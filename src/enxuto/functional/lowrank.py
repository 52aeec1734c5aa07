"""Low rank: a weight matrix as the product of two thin ones, so that what its outputs lose is least.

With second moments H of the inputs, the outputs of a matrix W have those of G = W H Wᵀ. Of all products of rank r, U Uᵀ W loses
least of them, where U holds the r leading eigenvectors of G: the sum of its other eigenvalues, tr(E H Eᵀ) for E = W - U Uᵀ W. No
inverse of H is needed, nor its full rank. Without H (the identity in its place) that is the truncated SVD.
Source: Zhang et al. 2015, "Accelerating very deep convolutional networks for classification and detection", section 2.1; the same
optimum from the side of the inputs is Wang et al. 2024, "SVD-LLM". Eckart, Young 1936 without data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from enxuto.functional.feedback import DAMPING

BLOCK = 512  # columns that are multiplied at once in double precision


def damped(square: Tensor) -> Tensor:
    """Second moments with a little more on their diagonal: what few samples never showed counts too.

    Deviation: the papers have samples enough. Shapes: [in, in].
    """
    added = DAMPING * (float(square.diagonal().mean()) or 1.0)
    more = square.clone()
    more.diagonal().add_(added)
    return more


def lost_by_rank(matrix: Tensor, square: Tensor | None = None) -> Tensor:
    """What the outputs lose at each rank from 0 on, summed squares: all at 0, nothing at full rank.

    Shapes: matrix [out, in], square [in, in] -> float64 [min(out, in) + 1].
    """
    values = _leading(_gram(matrix, square), None)[0].clamp(min=0)
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def split_rank(matrix: Tensor, rank: int, square: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two factors of the best approximation of this rank: matrix ≈ up @ down; channel by channel of equal norms.

    Shapes: matrix [out, in], square [in, in] -> down [rank, in], up [out, rank].
    """
    vectors = _leading(_gram(matrix, square), rank)[1]
    if len(matrix) > matrix.shape[1]:  # those of the inputs' side
        vectors = torch.linalg.qr(times(matrix, vectors if square is None else _root(square) @ vectors))[0]
    up, down = balanced(vectors, times(vectors.T, matrix))
    return down.to(matrix), up.to(matrix)


def rank_for_energy(matrix: Tensor, energy: float, square: Tensor | None = None) -> int:
    """The least rank whose outputs hold the fraction `energy` of the sum of squares.

    Shapes: matrix [out, in], square [in, in].
    """
    lost = lost_by_rank(matrix, square)
    if not float(lost[0]) > 0:
        return 1
    return max(1, int((lost > (1 - energy + 1e-12) * lost[0]).sum()))


def squares(matrix: Tensor, square: Tensor | None = None) -> float:
    """The summed squares of the outputs, tr(W H Wᵀ). Shapes: matrix [out, in], square [in, in]."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    seen = wide if square is None else wide @ square.to(wide)
    return max(0.0, float((seen.double() * wide).sum()))


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product of factors in which column i of the left has the norm of row i of the right.

    Shapes: left [..., rank], right [rank, ...].
    """
    norms = (right.flatten(1).norm(dim=1) / left.flatten(0, -2).norm(dim=0)).nan_to_num(nan=0.0, posinf=0.0)
    root = torch.where(norms > 0, norms, 1.0).sqrt()
    return left * root, right / root.view(-1, *[1] * (right.ndim - 1))


def leading(gram: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors of a symmetric matrix, the largest value first. Shapes: [n, n] -> [n, rank]."""
    return _leading(gram, rank)[1]


def _leading(gram: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, in falling order, with their vectors; all of them without vectors where rank is None.

    Only what is asked for is computed: the leading tenth of 4,096 takes a quarter of the time that all take.
    """
    from scipy.linalg import eigh  # scipy.linalg takes a fifth of a second to import

    few = None if rank is None else (len(gram) - min(rank, len(gram)), len(gram) - 1)
    columns = gram.cpu().numpy().T  # the same, and as LAPACK has it: else there would be a copy
    found = eigh(columns, eigvals_only=rank is None, subset_by_index=few, overwrite_a=True, check_finite=False)
    values, vectors = (found, found[:0]) if rank is None else found
    return torch.from_numpy(values).flip(0).to(gram), torch.from_numpy(vectors).flip(-1).to(gram)


def _gram(matrix: Tensor, square: Tensor | None) -> Tensor:
    """The second moments of the outputs, or where the inputs are fewer, the matrix with the same eigenvalues on their side."""
    if len(matrix) <= matrix.shape[1]:
        return outputs_square(matrix, square)
    inner = outputs_square(matrix.T, None)
    root = None if square is None else _root(square)
    return inner if root is None else root.T @ inner @ root


def outputs_square(matrix: Tensor, square: Tensor | None = None) -> Tensor:
    """W H Wᵀ in double precision, block by block. Shapes: matrix [out, in], square [in, in] -> float64 [out, out]."""
    total = torch.zeros(len(matrix), len(matrix), dtype=torch.float64, device=matrix.device)
    for columns in _blocks(matrix.shape[1]):
        own = matrix[:, columns].double()
        total += (own if square is None else times(matrix, square[:, columns])) @ own.T
    return total


def times(matrix: Tensor, square: Tensor) -> Tensor:
    """The product in double precision, block by block. Shapes: matrix [out, in], square [in, n] -> float64 [out, n]."""
    total = torch.zeros(len(matrix), square.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in _blocks(matrix.shape[1]):
        total += matrix[:, rows].double() @ square[rows].double()
    return total


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, size, BLOCK)]


def _root(square: Tensor) -> Tensor:
    """The lower R of H = R Rᵀ, float64."""
    root: Tensor = torch.linalg.cholesky(square.double())
    return root
