"""What stays: from scores to a boolean pattern, with exact counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from enxuto.errors import RangeError, ShapeError
from enxuto.functional.affine import PIECE


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """True where a weight stays: the largest `1 - sparsity` of all scores.

    Shapes: scores [any] -> bool [any]. Ties are broken by position, so the count is exact: the number of False is
    `round(sparsity * n)`.
    Raises: RangeError if sparsity is outside [0, 1).
    >>> keep_largest(torch.tensor([[3., 1.], [2., 4.]]), sparsity=0.5)
    tensor([[ True, False],
            [False,  True]])
    """
    return keep_largest_of([scores], sparsity)[0]


def keep_largest_of(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """The same over several tensors together, as if they lay one behind the other.

    Selects instead of sorting: among the scores whose upper 16 bits are those of the limit.
    """
    check_sparsity(sparsity)
    left = round(sparsity * sum(each.numel() for each in scores))
    if not left:
        return [torch.ones_like(each, dtype=torch.bool) for each in scores]
    limit, ties = _limit(scores, left)
    kept = []
    for each in scores:
        flat = each.flatten()
        keep = flat > limit
        for few, of in zip(flat.split(PIECE), keep.split(PIECE), strict=True):
            at = (few == limit).nonzero().flatten()
            of[at[ties:]] = True
            ties -= min(ties, len(at))
        kept.append(keep.view_as(each))
    return kept


def _limit(scores: Sequence[Tensor], left: int) -> tuple[float, int]:
    """The largest of the `left` smallest scores, and how many of those that equal it are among these."""
    counts = np.zeros(2**16, dtype=np.int64)
    for few in _pieces(scores):
        counts += np.bincount(_coarse(few), minlength=len(counts))
    upto = counts.cumsum()
    place = int(np.searchsorted(upto, left))
    near = np.concatenate([few[_coarse(few) == place] for few in _pieces(scores)])
    rank = left - int(upto[place] - counts[place])
    near.partition(rank - 1)
    return float(near[rank - 1]), int(np.count_nonzero(near[:rank] == near[rank - 1]))


def _pieces(scores: Sequence[Tensor]) -> Iterator[NDArray[np.floating[Any]]]:
    for each in scores:
        for few in each.detach().flatten().split(PIECE):
            yield (few if few.dtype == torch.float64 else few.float()).cpu().numpy()


def _coarse(scores: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """The upper 16 bits of each score as a number in 0...65535 that grows with it."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # the sum has no negative zero
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16) + 2**15


def keep_rows(scores: Tensor, sparsity: float) -> Tensor:
    """The same in each row by itself. Shapes: scores [out, in] -> bool [out, in]."""
    check_sparsity(sparsity)
    left = round(sparsity * scores.shape[1])
    keep = torch.ones_like(scores, dtype=torch.bool)
    rows = max(1, PIECE // max(1, scores.shape[1]))
    for few, of in zip(scores.split(rows), keep.split(rows), strict=True):
        of.scatter_(1, few.argsort(dim=1, stable=True)[:, :left], False)
    return keep


def pooled(scores: Tensor, block: tuple[int, int] | None) -> Tensor:
    """The sum of the scores of each block; the scores themselves without one.

    Shapes: scores [out, in] -> [out / block[0], in / block[1]].
    """
    if block is None:
        return scores
    high, wide = block
    return scores.reshape(len(scores) // high, high, -1, wide).sum((1, 3))


def spread(keep: Tensor, block: tuple[int, int] | None) -> Tensor:
    """What stays of a matrix whose blocks stay or go. Shapes: the other way than `pooled`."""
    return keep if block is None else keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


def keep_pattern(scores: Tensor, pattern: str, strength: float = 1.0) -> Tensor:
    """True for the n largest of every m scores in a row, for pattern "n:m" (for example "2:4"); below full strength for more.

    Shapes: scores [out, ...], whose rows must be a multiple of m long -> bool, same shape.
    Raises: RangeError if the pattern is not "n:m" with 0 < n < m; ShapeError if m does not divide the rows.
    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks".
    """
    stay, size = parse_pattern(pattern)
    stay += round((1 - strength) * (size - stay))
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


def check_block(block: object) -> None:
    """Raises RangeError unless a block is two whole numbers of at least 1: rows and columns."""
    sizes = block if isinstance(block, (tuple, list)) else ()
    if len(sizes) != 2 or not all(type(size) is int and size >= 1 for size in sizes):
        raise RangeError(f"block={block!r} is not understood; write (8, 1) for eight rows of one column.")


def check_sparsity(sparsity: float) -> None:
    """Raises RangeError if sparsity is outside [0, 1)."""
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise RangeError(f"sparsity={sparsity!r} is the fraction of zeros and must be in [0, 1); write for example 0.9.")
