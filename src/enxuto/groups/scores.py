"""How much each unit of a group matters: higher = keep. One number for each unit, from the slices it owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import differentiating
from enxuto.cut import Group, Slice
from enxuto.evidence.gradients import drawn
from enxuto.sites import held

FloatArray = npt.NDArray[np.float64]
PIECE = 1 << 17  # numbers that are taken to double precision at once


def magnitude(model: nn.Module, groups: Sequence[Group]) -> list[FloatArray]:
    """The Euclidean norm of all weights a unit owns, over the mean of its group. Shapes: one [units] for each group.

    Source: Li et al. 2017, "Pruning filters for efficient convnets", section 3, with the L2 norm; over coupled slices
    as in Fang et al. 2023, "DepGraph", eq. 8.
    """
    found = []
    for group in groups:
        total = np.zeros(group.size)
        for part in group.slices:
            if part.reads or part.writes:
                total += _by_unit(part, group.size, lambda weight: weight.double().square(), held(model, part.address).detach())
        norm = np.sqrt(total)
        found.append(norm / max(norm.mean(), np.finfo(np.float64).tiny))
    return found


def taylor(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], seed: int) -> list[FloatArray | None]:
    """The squared change of the outputs when a unit is no longer read, to first order, summed over the samples.

    Without labels: with random signs r the gradient of r·f(x) has, squared, the expectation |∂f/∂u|², so that each
    backward pass estimates the sum over its samples. Batches go through in as many parts as keep what autograd holds of them
    below the weights. Needs float parameters. Shapes: one [units] for each group; None where no gradient reaches its weights.
    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", eq. 8; the random signs from
    Hutchinson 1990. Deviation: taken at the weights that read a unit, and of the outputs instead of a loss.
    """
    reading = [(index, part) for index, group in enumerate(groups) for part in group.slices if part.reads]
    weights = {id(held(model, part.address)): held(model, part.address).requires_grad_() for _, part in reading}
    found, reached = [np.zeros(group.size) for group in groups], [False] * len(groups)
    for gradients in _gradients(model, batches, seed, weights):
        change = [np.zeros(group.size) for group in groups]
        for index, part in reading:
            tensor = held(model, part.address)
            gradient = gradients[id(tensor)]
            if gradient is not None:
                reached[index] = True
                change[index] += _by_unit(part, groups[index].size, lambda w, g: (w * g).double(), tensor.detach(), gradient)
        for index, each in enumerate(change):
            found[index] += each**2
        del gradients, gradient  # as large as the weights, and the next come before these would go
    return [each if seen else None for each, seen in zip(found, reached, strict=True)]


def _gradients(model: nn.Module, batches: Iterable[Batch], seed: int, weights: Mapping[int, Tensor]) -> Iterator[dict[int, Any]]:
    """Of the signed outputs of each part of the batches, by each weight; None for one that they do not depend on."""
    for _, total in drawn(model, batches, seed):
        with differentiating("the calibration batches"):
            several = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        del total
        yield dict(zip(weights, several, strict=True))
        del several


def _by_unit(part: Slice, size: int, made: Callable[..., Tensor], *tensors: Tensor) -> FloatArray:
    """The sum of what is `made` of tensors over what each unit owns. Shapes: each as the tensor of the slice -> [size]."""
    first = tensors[0]
    width = max(1, PIECE * len(part.unit_of) // max(1, first.numel()))
    pieces = zip(*(tensor.split(width, part.dim) for tensor in tensors), strict=True)
    lines = torch.cat([made(*each).movedim(part.dim, 0).flatten(1).sum(1) for each in pieces]).cpu().numpy()
    owned = part.unit_of >= 0
    return np.bincount(part.unit_of[owned], weights=lines[owned], minlength=size).astype(np.float64)
