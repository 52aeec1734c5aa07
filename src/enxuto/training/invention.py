"""Inputs made from a network alone, where no data are left: what its batch norms remember of those it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.calls import attempt, device_of, differentiating
from enxuto.checks import named, whole
from enxuto.errors import LayerError, RangeError, ShapeError, TaskError
from enxuto.functional.invent import roughness, unlike_statistics
from enxuto.functional.likeness import class_axis
from enxuto.outputs import output_tensors
from enxuto.progress import counted
from enxuto.surgery import borrowed

BATCH = 64  # samples that are made together: fewer have no statistics
PACE = 0.1  # of Adam, the paper's
SMOOTH = 0.1  # what neighbours that differ cost
SURE = 0.02  # what a class that is not told costs beside statistics that are off, which a larger price leaves off
SHIFT = 14  # images are moved by one pixel in so many at most, so that none hangs on its place


def invent(model: nn.Module, shape: Sequence[int], samples: int = 256, *, seed: int = 0, updates: int = 200) -> list[Tensor]:
    """Batches of inputs that the network takes for those it was trained on: `calibration=` where no data are at hand.

    Each begins as noise and moves until all batch norms see the means and deviations that they remember and, where the first
    output scores classes, the network is sure of one; images are smooth besides. They are no substitute for real inputs, even of
    a few dozen: `docs/distill.md` has the difference.
    Shapes: `shape` is that of one sample, as (1, 28, 28); batches [64, *shape], the last may be smaller.
    Raises: LayerError for a network without batch norms that hold running statistics; ShapeError or RangeError for arguments
    out of range; TaskError when the network does not take such inputs.
    Source: Yin et al. 2020, "Dreaming to distill: data-free knowledge transfer via DeepInversion". Deviation: without the
    adversarial part of equation 6.
    """
    if not isinstance(shape, Sequence) or not shape or not all(whole(size, 1) for size in shape):
        raise ShapeError(f"{named('shape', shape)} is no shape of one sample; write for example (3, 32, 32), without the batch.")
    for name, value, least in (("samples", samples, 2), ("updates", updates, 1)):
        if not whole(value, least):
            raise RangeError(f"{named(name, value)} is no whole number of at least {least}; use for example 200.")
    network = borrowed(model).eval()
    norms = [each for each in network.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    if not norms:
        raise LayerError(
            f"inputs are made from the running statistics of batch norms, and {type(model).__name__} has none (Fold takes them "
            "away); give calibration=batches of real inputs, which need no labels."
        )
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(BATCH, samples - done) for done in range(0, samples, BATCH)]
    if sizes[-1] == 1:  # one sample has no deviation
        sizes[-2:] = [BATCH - 1, 2]
    batches = [torch.randn(size, *shape, generator=generator).to(device_of(network)) for size in sizes]
    with torch.enable_grad(), _statistics(norms) as off:
        return [_moved(network, batch, off, generator, updates) for batch in counted(batches, "inventing inputs", len(batches))]


def _moved(network: nn.Module, batch: Tensor, off: list[Tensor], generator: torch.Generator, updates: int) -> Tensor:
    """What a batch of noise becomes."""
    inputs = batch.requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=PACE)
    wanted: Tensor | None = None
    for done in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = PACE * (1 - done / updates)
        off.clear()
        scores = _scores(attempt(network, _shifted(inputs, generator), "the inputs that are made"))
        if not off:
            raise TaskError("no batch norm of the network runs on such inputs; give calibration=batches of real inputs.")
        loss = torch.stack(off).mean() + (SMOOTH * roughness(inputs) if inputs.ndim == 4 else 0.0)
        if scores is not None:
            if wanted is None:  # as many of each class
                wanted = torch.randperm(len(scores), generator=generator).to(scores.device) % scores.shape[-1]
            loss = loss + SURE * F.cross_entropy(scores, wanted)
        with differentiating("the inputs that are made"):
            (inputs.grad,) = torch.autograd.grad(loss, [inputs])
        optimizer.step()
    return inputs.detach()


def _scores(outputs: Any) -> Tensor | None:
    """The first output, if it can be a score of each class for each sample. Shapes: [batch, classes]."""
    first = next(iter(output_tensors(outputs).values()), None)
    scoring = first is not None and first.is_floating_point() and first.ndim == 2 and first.shape[class_axis(2)] > 1
    return first if scoring else None


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by some pixels, what leaves on one side comes in on the other; anything else as it is."""
    if images.ndim != 4:
        return images
    moved = [int(torch.randint(-(side // SHIFT), side // SHIFT + 1, (), generator=generator)) for side in images.shape[2:]]
    return images.roll(moved, (2, 3))


@contextmanager
def _statistics(norms: Sequence[_BatchNorm]) -> Iterator[list[Tensor]]:
    """A list that fills with how far the inputs of each norm are from what it remembers."""
    off: list[Tensor] = []

    def look(norm: _BatchNorm, given: tuple[Tensor, ...]) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        off.append(unlike_statistics(given[0], norm.running_mean, norm.running_var))

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        yield off
    finally:
        for hook in hooks:
            hook.remove()
