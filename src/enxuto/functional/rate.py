"""What codes will cost in a file, and what a step more would: the price that a training for size sees.

A code is dear where its row and its column are empty, and a larger magnitude where it is rare; so it is coded, by classes of rows
and columns. Lengths are those of the codes as they stand (no model is sent: the coder's adapts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

HALVINGS = 30


@dataclass(frozen=True, eq=False)
class Prices:
    """Bits of one matrix of codes: in `total`, of a one over a zero at each place, and of each magnitude over the one before.

    Shapes: first float32 [rows, columns], further float32 [largest]: 0 above the largest; neither is negative.
    """

    total: float
    first: Tensor
    further: Tensor

    def pull(self, steps: Tensor, seen: Tensor) -> Tensor:
        """The bits of values between codes, by their slopes where each is seen: one number, whose gradients are these slopes.

        Shapes: steps and seen [rows, columns], with signs -> [].
        """
        told: tuple[Tensor, Tensor] = _Pulled.apply(steps, seen, self)  # type: ignore[no-untyped-call]
        return told[0]

    def slopes(self, steps: Tensor) -> Tensor:
        """What a step more costs at each place, in bits. Shapes: steps [rows, columns], the magnitudes in steps -> the same."""
        at = steps.round().clamp_(max=len(self.further))
        beyond = F.pad(self.further, (1, 0)).index_select(0, at.flatten().int()).view_as(at)
        return beyond.addcmul_(self.first, at.neg_().add_(1).clamp_(min=0))  # the first where there is none yet


class _Pulled(Function):
    """Slopes are constants: what autograd would find by four more passes over all weights."""

    @staticmethod
    def forward(steps: Tensor, seen: Tensor, prices: Prices) -> tuple[Tensor, Tensor]:
        slopes = prices.slopes(seen.abs())
        slopes.mul_(steps.sign())
        return torch.dot(slopes.flatten(), steps.flatten()), slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Prices], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * gradient, None, None


def prices(magnitudes: Tensor, largest: int) -> Prices:
    """The prices of these codes. Shapes: magnitudes [rows, columns], whole numbers 0 ... largest."""
    counts = torch.bincount(magnitudes.flatten().byte(), minlength=largest + 1)[1:].float()
    lengths = _lengths(counts)
    odds = _odds(magnitudes.clamp(max=1))
    total = float(torch.dot(counts, lengths)) + odds.total / math.log(2)
    first = (float(lengths[0]) - odds.rows / math.log(2))[:, None] - odds.columns / math.log(2)
    further = F.pad(lengths.diff().clamp_(min=0), (0, 1))
    return Prices(total, first.clamp_(min=0), further)


def _lengths(counts: Tensor) -> Tensor:
    """Bits of each magnitude among those that are not zero, with its sign. Shapes: counts [largest] -> float32 [largest]."""
    seen = counts + 0.5
    return 1 - (seen / seen.sum()).log2()


@dataclass(frozen=True, eq=False)
class _Odds:
    """The logarithm of the odds that a place is not zero, in parts that add up: of its row and of its column.

    Shapes: [rows], [columns]; `total` is what all places take, in nats.
    """

    rows: Tensor
    columns: Tensor
    total: float


def _odds(there: Tensor) -> _Odds:
    """The odds by how many are not zero in a row and in a column; in all as many as are.

    Shapes: [rows, columns], zeros and ones. A line of one place says what is to be foreseen, and is not heard.
    """
    size = there.shape
    rows, columns = there.sum(1), there.sum(0)
    whole = _logit(rows.sum(), there.numel())

    def logits(sums: Tensor, of: int) -> Tensor:
        return _logit(sums, of) if of > 1 else whole.expand_as(sums)

    (heights, tall), (widths, wide) = (sums.unique(return_counts=True) for sums in (rows, columns))
    classes = (logits(heights, size[1])[:, None] + logits(widths, size[0]) - whole).double()  # few, where most are zero
    places = (tall[:, None] * wide).double()
    low, high, wanted = -20.0, 20.0, float(rows.sum())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if float((places * torch.sigmoid(classes + middle)).sum()) > wanted else (middle, high)
    shift = (low + high) / 2 - float(whole)
    of_rows, of_columns = logits(rows, size[1]) + shift, logits(columns, size[0])
    nothing = float((places * F.softplus(classes + (low + high) / 2)).sum())
    return _Odds(of_rows, of_columns, nothing - float(torch.dot(rows, of_rows) + torch.dot(columns, of_columns)))


def _logit(count: Tensor, of: int) -> Tensor:
    share = (count + 0.5) / (of + 1)
    return (share / (1 - share)).log()
