"""How much each weight matters: scores, higher = keep."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """The absolute value of each weight.

    Shapes: [any] -> [any]. Source: Han et al. 2015, "Learning both weights and connections".
    """
    return weight.detach().abs()


def lamp(weight: Tensor) -> Tensor:
    """The squared weight over the sum of all squares that are at least as large, within the layer.

    One global threshold on these scores gives every layer its own sparsity, and never empties one.
    Shapes: [any] -> float32 [any].
    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", eq. 4.
    """
    values = weight.detach().flatten().float().abs()
    squares = (values / values.max().clamp_min(torch.finfo(values.dtype).tiny)).square() if values.numel() else values
    ordered, order = squares.sort(stable=True)
    tails = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = ordered / tails.clamp_min(torch.finfo(squares.dtype).tiny)
    return scores.view_as(weight)
