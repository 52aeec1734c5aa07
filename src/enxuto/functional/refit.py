"""The weights that stay, set so that a matrix with zeros computes what it computed without them, as nearly as it can.

What is minimised is the error of the products, tr(E H Eᵀ) for E = matrix - refitted and H the second moments of the inputs: for
each row a least-squares problem over the columns that stay, and another than its neighbour's. Conjugate gradients solve all rows
at once, from the values that are there, without an inverse for each; every step of theirs lowers the error.
Source: Frantar, Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot", eq. 1, for the problem;
Hestenes, Stiefel 1952, "Methods of conjugate gradients for solving linear systems", for the way. Deviation: SparseGPT lets only
later columns answer for what goes, which is one sweep and not the least error (docs/pruning.md has both measured).
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of H's diagonal, added to it, as in GPTQ: without it few samples would ask for anything
ROWS = 128  # at once: rows do not know each other
CLOSE = 1e-6  # of the squared residual at the start, where it ends


def refit(matrix: Tensor, start: Tensor, keep: Tensor, square: Tensor, steps: int) -> Tensor:
    """`start` where `keep` is true, moved in at most `steps` steps towards the least error of the products; zero elsewhere.

    Shapes: matrix, start float32, keep bool [groups, rows, in], square [groups, in, in] -> [groups, rows, in].
    >>> square = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # two inputs that rise and fall together
    >>> matrix, keep = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[False, True]]])
    >>> refit(matrix, matrix, keep, square, steps=9).round(decimals=1)
    tensor([[[0.0000, 2.9000]]])
    """
    size = square.diagonal(dim1=1, dim2=2).double().mean(1).float()
    damped = square / torch.where(size > 0, size, 1.0)[:, None, None]
    damped.diagonal(dim1=1, dim2=2).add_(DAMPING)
    found = torch.empty_like(matrix)
    for few in torch.arange(matrix.shape[1], device=matrix.device).split(ROWS):
        exponent = torch.frexp(matrix[:, few].abs().amax(2, keepdim=True)).exponent
        scale = torch.ldexp(
            torch.ones_like(exponent, dtype=matrix.dtype), exponent
        )  # a power of two: what does not move keeps every bit
        found[:, few] = _descended(matrix[:, few] / scale, start[:, few] / scale, keep[:, few], damped, steps) * scale
    return found


def _descended(matrix: Tensor, start: Tensor, keep: Tensor, square: Tensor, steps: int) -> Tensor:
    """Conjugate gradients within `keep`, every row with its own steps, with the diagonal as preconditioner."""
    diagonal = square.diagonal(dim1=1, dim2=2)[:, None]
    found = torch.where(keep, start, 0.0)
    left = ((matrix - found) @ square) * keep  # minus the gradient
    way = left / diagonal
    power = (left * way).sum(2, keepdim=True)
    end = CLOSE * power
    for _ in range(steps):
        moved = (way @ square) * keep
        step = torch.where(power > end, power / (way * moved).sum(2, keepdim=True), 0.0)
        found = found + step * way
        left = left - step * moved
        scaled = left / diagonal
        before, power = power, (left * scaled).sum(2, keepdim=True)
        if not bool((power > end).any()):
            break
        way = scaled + torch.where(before > end, power / before, 0.0) * way
    return found
