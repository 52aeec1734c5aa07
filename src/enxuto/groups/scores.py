"""How much each unit of a group matters: higher = keep. One number for each unit, from the slices it owns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from enxuto.batches import batch_size, leaves, parts
from enxuto.cut import Group, Slice, tensor_at
from enxuto.groups.trace import small_batch
from enxuto.sizes import tensor_bytes
from enxuto.task import Batch, attempt, slow_attention

FloatArray = npt.NDArray[np.float64]
PASSES = 32  # of `taylor` over a batch; 128 kept 0.5 points more or less on ResNet-8, no trend
PIECE = 1 << 17  # numbers that are taken to double precision at once
LEAST_BYTES = 1 << 25  # that what `taylor` keeps of a forward pass may take, however small the network is


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
                total += _by_unit(part, group.size, lambda weight: weight.double().square(), tensor_at(model, part).detach())
        norm = np.sqrt(total)
        found.append(norm / max(norm.mean(), np.finfo(np.float64).tiny))
    return found


def taylor(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], seed: int) -> list[FloatArray]:
    """The squared change of the outputs when a unit is no longer read, to first order, summed over the samples.

    Without labels: with random signs r the gradient of r·f(x) has, squared, the expectation |∂f/∂u|², so that each
    backward pass estimates the sum over its samples. Batches go through in as many parts as keep what autograd holds of them
    below the weights. Needs float parameters. Shapes: one [units] for each group.
    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", eq. 8; the random signs from
    Hutchinson 1990. Deviation: taken at the weights that read a unit, and of the outputs instead of a loss.
    """
    generator = torch.Generator().manual_seed(seed)
    reading = [(index, part) for index, group in enumerate(groups) for part in group.slices if part.reads]
    weights = {id(tensor_at(model, part)): tensor_at(model, part).requires_grad_() for _, part in reading}
    found = [np.zeros(group.size) for group in groups]
    for batch in _pieces(model, _cycle(batches, PASSES)):
        gradients = dict(zip(weights, _gradients(model, batch, list(weights.values()), generator), strict=True))
        change = [np.zeros(group.size) for group in groups]
        for index, part in reading:
            tensor = tensor_at(model, part)
            gradient = gradients[id(tensor)]
            if gradient is not None:
                change[index] += _by_unit(part, groups[index].size, lambda w, g: (w * g).double(), tensor.detach(), gradient)
        for index, each in enumerate(change):
            found[index] += each**2
        del gradients, gradient  # as large as the weights, and the next come before these would go
    return found


def _gradients(
    model: nn.Module, batch: Batch, weights: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor | None, ...]:
    """Of the outputs, summed with random signs, by each weight; None where they do not depend on it."""
    with torch.enable_grad(), slow_attention():
        outputs = _answers(model, batch)
        signs = [torch.randint(0, 2, each.shape, generator=generator).to(each) * 2 - 1 for each in outputs]
        total = torch.stack([(each * sign).sum() for each, sign in zip(outputs, signs, strict=True)]).sum()
        del outputs
        return torch.autograd.grad(total, weights, allow_unused=True)


def _by_unit(part: Slice, size: int, made: Callable[..., Tensor], *tensors: Tensor) -> FloatArray:
    """The sum of what is `made` of tensors over what each unit owns. Shapes: each as the tensor of the slice -> [size]."""
    first = tensors[0]
    width = max(1, PIECE * len(part.unit_of) // max(1, first.numel()))
    pieces = zip(*(tensor.split(width, part.dim) for tensor in tensors), strict=True)
    lines = torch.cat([made(*each).movedim(part.dim, 0).flatten(1).sum(1) for each in pieces]).cpu().numpy()
    owned = part.unit_of >= 0
    return np.bincount(part.unit_of[owned], weights=lines[owned], minlength=size).astype(np.float64)


def _pieces(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches in parts, of as many samples as autograd holds within the bytes of the weights; whole where the model takes
    no other number."""
    allowed = max(LEAST_BYTES, sum(tensor_bytes(parameter) for parameter in model.parameters()))
    each = 0.0
    for batch in batches:
        few = small_batch(model, batch)
        if few is not batch:
            each = each or _held_bytes(model, few) / batch_size(few)
            yield from parts(batch, math.ceil(batch_size(batch) * each / allowed) or 1)
        else:
            yield batch


def _held_bytes(model: nn.Module, batch: Batch) -> int:
    """What autograd keeps of a forward pass, beyond the parameters and the batch."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *leaves(batch)]}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), slow_attention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = _answers(model, batch)
    del outputs  # until here nothing was given back
    return sum(held.values())


def _answers(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The outputs that depend on the parameters."""
    outputs = leaves(attempt(model, batch, "a calibration batch"))
    return [each for each in outputs if _counts(each)]


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
