"""Tucker-2: a convolution as three thin ones, 1x1 to fewer inputs, k x k to fewer outputs, 1x1 to all outputs.

The kernel W [out, in, places] becomes up · core · down, projected on both axes of channels. Given `down`, core and up are the
best that there are: the regression of the outputs on what `down` lets through, reduced to the leading eigenvectors of what it
explains. `down` holds the leading inputs as the outputs kept so far weigh them. The two take turns; without moments that is HOOI
from HOSVD.
Source: Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile applications";
De Lathauwer et al. 2000, "On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order tensors".
Deviation: both steps see the second moments of the patches, which the papers leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from enxuto.functional.lowrank import balanced, leading, outputs_square

ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Tucker:
    """The factors. Shapes: down [ranks[0], in], core [ranks[1], ranks[0], places], up [out, ranks[1]]."""

    down: Tensor
    core: Tensor
    up: Tensor


def split_tucker(weight: Tensor, ranks: tuple[int, int], square: Tensor | None = None) -> Tucker:
    """The factors of a kernel with so many channels after `down` and before `up`, of which the outputs lose little.

    Shapes: weight [out, in, places], square [in * places, in * places].
    """
    wide = weight.double()
    root = _channel_root(square, weight.shape[1])
    heard = wide
    for _ in range(ROUNDS):
        down = _leading_inputs(heard, root, ranks[0])
        explained, solution = _explained(*_seen(wide, square, down))
        up = leading(explained, ranks[1])
        heard = torch.einsum("oik,or->rik", wide, up)
    core = (up.T @ solution).view(ranks[1], *(ranks[0], weight.shape[2]))
    left, core = balanced(up, core)
    right, turned = balanced(down.T, core.transpose(0, 1))
    return Tucker(right.T.to(weight), turned.transpose(0, 1).to(weight), left.to(weight))


def lost_by_ranks(weight: Tensor, in_ranks: Sequence[int], square: Tensor | None = None) -> Tensor:
    """What the outputs lose, summed squares, with each of these numbers of channels after `down`, and 0, 1, ... before `up`: of a
    HOSVD start, so that the rounds may still make it less.

    Shapes: weight [out, in, places], square [in * places, in * places] -> float64 [len(in_ranks), out + 1].
    """
    wide = weight.double()
    down = _leading_inputs(wide, _channel_root(square, weight.shape[1]), max(in_ranks))
    crossed, both = _seen(wide, square, down)
    total = outputs_square(weight.flatten(1), square).diagonal().sum()
    lost = []
    for rank in in_ranks:  # the leading inputs are those of more, cut off
        few = slice(rank * weight.shape[2])
        explained, _ = _explained(crossed[:, few], None if both is None else both[few, few])
        kept = torch.linalg.eigvalsh(explained).clamp(min=0).flip(0).cumsum(0)
        lost.append((total - torch.cat([kept.new_zeros(1), kept])).clamp(min=0))
    return torch.stack(lost)


def _channel_root(square: Tensor | None, channels: int) -> Tensor | None:
    """The lower R of R Rᵀ, the second moments of the input channels over all places of a patch, float64 [in, in]."""
    if square is None:
        return None
    places = len(square) // channels
    mean = torch.einsum("ikjk->ij", square.view(channels, places, channels, places)).double() / places
    root: Tensor = torch.linalg.cholesky(mean)
    return root


def _leading_inputs(weight: Tensor, root: Tensor | None, rank: int) -> Tensor:
    """An orthonormal base of the inputs that outputs hear most of. Shapes: weight [out, in, places] -> [rank, in]."""
    gram = outputs_square(weight.transpose(0, 1).flatten(1))
    if root is None:
        return leading(gram, rank).T
    whitened = leading(root.T @ gram @ root, rank)
    return torch.linalg.qr(torch.linalg.solve_triangular(root.T, whitened, upper=True))[0].T


def _seen(weight: Tensor, square: Tensor | None, down: Tensor) -> tuple[Tensor, Tensor | None]:
    """The moments of the outputs with what `down` lets through, and of this with itself (None: the identity).

    Shapes: -> [out, rank * places], [rank * places, rank * places].
    """
    if square is None:
        return torch.einsum("oik,ri->ork", weight, down).flatten(1), None
    shape = (*weight.shape[1:], *weight.shape[1:])
    half = torch.einsum("ikjl,rj->ikrl", square.view(shape).double(), down).flatten(2)
    both = torch.einsum("ikz,ri->rkz", half, down).flatten(0, 1)
    return weight.flatten(1) @ half.flatten(0, 1), both


def _explained(crossed: Tensor, both: Tensor | None) -> tuple[Tensor, Tensor]:
    """The second moments of the outputs as far as they follow from what is let through, and how they follow.

    Shapes: -> [out, out], [out, rank * places].
    """
    solution = crossed if both is None else torch.linalg.solve(both, crossed.T).T
    return solution @ crossed.T, solution
