"""How much each weight matters: scores, higher = keep."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from enxuto.functional.affine import PIECE

TINY = np.finfo(np.float32).tiny


def magnitude(weight: Tensor) -> Tensor:
    """The absolute value of each weight.

    Shapes: [any] -> [any]. Source: Han et al. 2015, "Learning both weights and connections".
    """
    return weight.detach().abs()


def wanda(weight: Tensor, inputs: Tensor) -> Tensor:
    """The absolute value of each weight times the root mean square of the input that it meets.

    Shapes: weight and inputs, the mean squares, [any] -> as the weight.
    Source: Sun et al. 2023, "A simple and effective pruning approach for large language models", eq. 1.
    """
    return inputs.sqrt().mul_(weight.detach().abs())


def taylor(weight: Tensor, gradients: Tensor) -> Tensor:
    """The squared change of what was derived when a weight becomes zero, to first order: its square times that of its gradient.

    Shapes: weight and gradients, the mean squares, [any] -> as the weight.
    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", eq. 8; LeCun et al. 1990, "Optimal brain
    damage", with the diagonal of the Fisher information as the curvature. Deviation: the square root of the score, in the
    order of which nothing changes and which 32 bits hold.
    """
    return gradients.sqrt().mul_(weight.detach().abs())


def lamp(weight: Tensor) -> Tensor:
    """The squared weight over the sum of all squares that are at least as large, within the layer.

    One global threshold on these scores gives every layer its own sparsity, and never empties one.
    Shapes: [any] -> float32 [any].
    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", eq. 4.
    """
    squares = weight.detach().flatten().float().abs().cpu().numpy()
    if squares.size:
        squares /= np.maximum(squares.max(), TINY)
        np.square(squares, out=squares)
    keys = np.empty(squares.size, dtype=np.uint64)  # the bits of a square, which order as it does, then its place
    for start in range(0, keys.size, PIECE):
        few = keys[start : start + PIECE]
        few[:] = squares[start : start + PIECE].view(np.uint32)
        few <<= np.uint64(32)
        few |= np.arange(start, start + few.size, dtype=np.uint64)
    keys.sort()
    tail = 0.0
    for stop in range(keys.size, 0, -PIECE):
        few = keys[max(0, stop - PIECE) : stop][::-1]
        values = (few >> np.uint64(32)).astype(np.uint32).view(np.float32)
        tails = np.cumsum(np.append(tail, values.astype(np.float64)))[1:]
        tail = float(tails[-1])
        squares[few & np.uint64(2**32 - 1)] = values / np.maximum(tails.astype(np.float32), TINY)
    return torch.from_numpy(squares).to(weight.device).view(weight.shape)
