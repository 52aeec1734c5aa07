"""Rounding a matrix column by column, each error answered by the columns that are still to come; then each value once more.

What is minimised is the error of the products, tr(E H Eᵀ) for E = matrix - rounded and H the second moments of the inputs. With
H = R Rᵀ for an upper R it is |E R|²: column k of E R depends on the errors up to k, so the best value of the next column is the
one that the errors before it ask for, rounded. No inverse of H is needed. What is found so is the start of a descent by
coordinates: each value moves to the best of its grid while the others stay, until none moves, and the error can only fall.
Source: Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative pre-trained transformers"; in this form
Chee et al. 2023, "QuIP: 2-bit quantization of large language models with guarantees", section 3 (LDLQ); the
descent as Behdin et al. 2023, "QuantEase: optimization-based quantization for language models". Deviation: it begins where the
feedback ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DAMPING = 0.01  # of the mean of H's diagonal, added to it: GPTQ's
BLOCK = 64  # columns whose errors reach each other one by one; those of blocks before come by one product
ROWS = 128  # rounded at once: rows do not know each other
SWEEPS = 8  # over the columns of a row at most, in its descent; few rows need more than three

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Feedback:
    """What errors ask of the columns still to come: the order in which columns are rounded, the upper R of H in it, and H in the
    opposite order.

    Shapes: order int64 [in], upper and square [in, in].
    """

    order: Tensor
    upper: Floats
    square: Floats
    mean: float  # of the diagonal of H, of which R is one of mean 1

    @staticmethod
    def of(square: Tensor, doubt: float = 0.0) -> Feedback:
        """Of the mean H of x xᵀ, which is used up. The column of the largest input comes first.

        What lies off the diagonal is made smaller by the part of it that is in doubt, 0 ... 1: a few samples seem to hang
        together by chance. Inputs that are zero throughout leave H without full rank: what damping adds makes up for it, ten
        times as much as often as it takes.
        Shapes: square float32 [in, in].
        """
        diagonal = square.diagonal()
        mean = float(diagonal.mean())
        square.div_(mean or 1.0)
        order = diagonal.argsort(descending=True, stable=True)
        turned = order.flip(0)
        square.copy_(square[turned[:, None], turned])
        own = diagonal.clone()
        square.mul_(1 - doubt)
        diagonal.copy_(own)
        added = DAMPING
        diagonal.add_(added)
        while True:
            lower, failed = torch.linalg.cholesky_ex(square)
            if not int(failed):
                return Feedback(order, lower.cpu().numpy()[::-1, ::-1], square.cpu().numpy(), mean)
            diagonal.add_(9 * added)
            added *= 10

    @property
    def left(self) -> float:
        """The logarithm of how much an error in a column still moves the products, squared, once the others answered it: the
        mean over the columns; minus infinity where all inputs are zero."""
        return 2 * float(np.log(self.upper.diagonal()).mean()) + math.log(self.mean) if self.mean else -math.inf

    def round_(self, matrix: Tensor, scale: Tensor, largest: int, entries: Tensor | None = None, *, zero: bool = True) -> None:
        """Puts the matrix on its grid, in place: whole multiples of `scale`, up to `largest` of them; plus or minus `scale`
        where `largest` is 0; or ascending entries. With `zero`, zeros stay zero.

        Shapes: matrix float32 [out, in], scale [out, in] (an expanded one will do), entries [any].
        """
        table: Floats = np.zeros(0, np.float32) if entries is None else entries.float().cpu().numpy()
        for start in range(0, len(matrix), ROWS):
            few = slice(start, start + ROWS)
            values: Floats = matrix[few, self.order].cpu().numpy()
            scales: Floats = scale[few][:, self.order].float().cpu().numpy()
            if zero:
                scales[values == 0] = 0
            found = values.copy()
            _round_rows_(found, scales, self.upper, largest, table)
            _descend_(found, values, scales, self.square, largest, table)
            matrix[few, self.order] = torch.from_numpy(found).to(matrix.device)


def _round_rows_(values: Floats, scales: Floats, factor: Floats, largest: int, table: Floats) -> None:
    """Where the scale is 0 the value stays."""
    from enxuto.functional.rounding_kernels import round_block  # compiled: imported late, with what needs it

    errors = np.zeros_like(values)
    for start in range(0, values.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        own = factor.diagonal()[part]
        asked = errors[:, :start] @ factor[:start, part] / own
        ratio = np.ascontiguousarray(factor[part, part] / own)  # whole arrays of one layout: numba compiles one loop
        round_block(values, asked, errors, ratio, scales, start, largest, table)


def _descend_(found: Floats, values: Floats, scales: Floats, square: Floats, largest: int, table: Floats) -> None:
    """Brings the found values nearer to the products of the values, in place. Shapes: square with its columns in reverse."""
    from enxuto.functional.rounding_kernels import descend

    made = np.ascontiguousarray(found[:, ::-1])
    pull = (made - values[:, ::-1]) @ square
    descend(made, pull, square, np.ascontiguousarray(scales[:, ::-1]), largest, table, SWEEPS)
    found[:] = made[:, ::-1]
