"""The weights that stay, set so that a matrix with zeros computes what it computed without them, as nearly as it can.

What is minimised is the error of the products, E|W x - V y|² for a matrix W, what it is to be, V, and the inputs that they meet,
x and y: those of the network as it was, and as it has become. For each row it is a least-squares problem over the columns that
stay, and another than its neighbour's. Conjugate gradients solve all rows at once, from the values that are there, without an
inverse for each; every step of theirs lowers the error.
Source: Frantar, Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot", eq. 1-2, for the
problem with x = y; Hestenes, Stiefel 1952, "Methods of conjugate gradients for solving linear systems", for the way. Deviation:
SparseGPT lets only later columns answer for what goes, which is one sweep and not the least error, and takes y for x, so that
what went wrong before is never made good (docs/prune.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of H's diagonal, added to it, as in GPTQ: without it few samples would ask for anything
ROWS = 128  # at once: rows do not know each other
CLOSE = 1e-6  # of the squared residual at the start, where it ends


def refit(matrix: Tensor, start: Tensor, keep: Tensor, square: Tensor, crossed: Tensor, steps: int) -> Tensor:
    """`start` where `keep` is true, moved in at most `steps` steps towards the least error of the products; zero elsewhere.

    Shapes: matrix, start float32, keep bool [groups, rows, in], square and crossed, the means of y yᵀ and of x yᵀ,
    [groups, in, in] -> [groups, rows, in].
    >>> square = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # two inputs that rise and fall together
    >>> matrix, keep = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[False, True]]])
    >>> refit(matrix, matrix, keep, square, square, steps=9).round(decimals=1)
    tensor([[[0.0000, 2.9000]]])
    """
    size = square.diagonal(dim1=1, dim2=2).double().mean(1).float()
    size = torch.where(size > 0, size, 1.0)[:, None, None]
    square, crossed = square / size, crossed / size
    square.diagonal(dim1=1, dim2=2).add_(DAMPING)
    crossed.diagonal(dim1=1, dim2=2).add_(DAMPING)
    found = torch.empty_like(matrix)
    for few in torch.arange(matrix.shape[1], device=matrix.device).split(ROWS):
        exponent = torch.frexp(matrix[:, few].abs().amax(2, keepdim=True)).exponent
        scale = torch.ldexp(torch.ones_like(exponent, dtype=matrix.dtype), exponent)  # a power of two: bits stay as they are
        asked = (matrix[:, few] / scale) @ crossed
        found[:, few] = _descended(asked, start[:, few] / scale, keep[:, few], square, steps) * scale
    return found


def _descended(asked: Tensor, start: Tensor, keep: Tensor, square: Tensor, steps: int) -> Tensor:
    """V square = asked, within `keep`: conjugate gradients, every row with its own steps, with the diagonal as preconditioner."""
    diagonal = square.diagonal(dim1=1, dim2=2)[:, None]
    found = torch.where(keep, start, 0.0)
    left = (asked - found @ square) * keep  # minus the gradient
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
