"""What stays: from scores to a boolean pattern, with exact counts."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from enxuto.errors import RangeError, ShapeError


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """True where a weight stays: the largest `1 - sparsity` of all scores.

    Shapes: scores [any] -> bool [any]. Ties are broken by position, so the count is exact: the number of False is
    `round(sparsity * n)`.
    Raises: RangeError if sparsity is outside [0, 1).
    >>> keep_largest(torch.tensor([[3., 1.], [2., 4.]]), sparsity=0.5)
    tensor([[ True, False],
            [False,  True]])
    """
    check_sparsity(sparsity)
    flat = scores.flatten()
    keep = torch.ones(flat.numel(), dtype=torch.bool, device=scores.device)
    keep[flat.sort(stable=True).indices[: round(sparsity * flat.numel())]] = False
    return keep.view_as(scores)


def keep_pattern(scores: Tensor, pattern: str) -> Tensor:
    """True for the n largest of every m scores in a row, for pattern "n:m" (for example "2:4").

    Shapes: scores [out, ...], whose rows must be a multiple of m long -> bool, same shape.
    Raises: RangeError if the pattern is not "n:m" with 0 < n < m; ShapeError if m does not divide the rows.
    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks".
    """
    stay, size = parse_pattern(pattern)
    rows = scores.reshape(scores.shape[0], -1)
    if rows.shape[1] % size:
        raise ShapeError(f"pattern={pattern!r} needs rows of a multiple of {size}; these have {rows.shape[1]} weights.")
    blocks = rows.reshape(-1, size)
    keep = torch.zeros_like(blocks, dtype=torch.bool)
    keep.scatter_(1, blocks.argsort(dim=1, descending=True, stable=True)[:, :stay], True)
    return keep.view_as(scores)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """The n and m of a pattern "n:m". Raises: RangeError unless 0 < n < m.

    >>> parse_pattern("2:4")
    (2, 4)
    """
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise RangeError(f"pattern={pattern!r} is not understood; write '2:4' to keep 2 of every 4 weights.")
    return int(match[1]), int(match[2])


def check_sparsity(sparsity: float) -> None:
    """Raises RangeError if sparsity is outside [0, 1)."""
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise RangeError(f"sparsity={sparsity!r} is the fraction of zeros and must be in [0, 1); write for example 0.9.")
