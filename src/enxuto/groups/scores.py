"""How much each unit of a group matters: higher = keep. One number for each unit, from the slices it owns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from enxuto.cut import Group, Slice, tensor_at
from enxuto.task import Batch, attempt, slow_attention

FloatArray = npt.NDArray[np.float64]
PASSES = 32  # backward passes of `taylor`; 128 kept 0.5 points more or less on ResNet-8, no trend


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
                total += _by_unit(part, tensor_at(model, part).detach().double().square(), group.size)
        norm = np.sqrt(total)
        found.append(norm / max(norm.mean(), np.finfo(np.float64).tiny))
    return found


def taylor(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], seed: int) -> list[FloatArray]:
    """The squared change of the outputs when a unit is no longer read, to first order, summed over the samples.

    Without labels: with random signs r the gradient of r·f(x) has, squared, the expectation |∂f/∂u|², so that each
    backward pass estimates the sum over its batch. Needs float parameters. Shapes: one [units] for each group.
    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", eq. 8; the random signs from
    Hutchinson 1990. Deviation: taken at the weights that read a unit, and of the outputs instead of a loss.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [(index, part) for index, group in enumerate(groups) for part in group.slices if part.reads]
    leaves = {id(tensor_at(model, part)): tensor_at(model, part).requires_grad_() for _, part in parts}
    found = [np.zeros(group.size) for group in groups]
    for batch in _cycle(batches, PASSES):
        with torch.enable_grad(), slow_attention():
            outputs = [
                each for each in torch.utils._pytree.tree_leaves(attempt(model, batch, "a calibration batch")) if _counts(each)
            ]
            signs = [torch.randint(0, 2, each.shape, generator=generator).to(each) * 2 - 1 for each in outputs]
            total = torch.stack([(each * sign).sum() for each, sign in zip(outputs, signs, strict=True)]).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        by_tensor = dict(zip(leaves, gradients, strict=True))
        change = [np.zeros(group.size) for group in groups]
        for index, part in parts:
            tensor = tensor_at(model, part)
            gradient = by_tensor[id(tensor)]
            if gradient is not None:
                change[index] += _by_unit(part, (tensor.detach() * gradient).double(), groups[index].size)
        for index, each in enumerate(change):
            found[index] += each**2
    return found


def _by_unit(part: Slice, values: Tensor, size: int) -> FloatArray:
    """The sum of values over what each unit owns. Shapes: values as the tensor of the slice -> [size]."""
    lines = values.movedim(part.dim, 0).flatten(1).sum(1).cpu().numpy()
    owned = part.unit_of >= 0
    return np.bincount(part.unit_of[owned], weights=lines[owned], minlength=size).astype(np.float64)


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _cycle(batches: Iterable[Batch], count: int) -> Iterable[Batch]:
    done = 0
    while done < count:
        for batch in batches:
            yield batch
            done += 1
            if done == count:
                return
