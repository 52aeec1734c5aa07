"""Fewer samples of a batch than it has: two, to follow a network by, or as many as autograd may hold at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, batch_size, leaves, parts, recorded, rows
from enxuto.calls import attempt, call, evaluating, slow_attention
from enxuto.sizes import parse_bytes, tensor_bytes
from enxuto.task import Task

TRACED_SAMPLES = 2  # one would let a forced squeeze() swallow the batch dimension
LEAST_BYTES = 1 << 25  # that what is kept of a forward pass may take, however small the network is


def moments_bytes(task: Task) -> int | None:
    """What moments may take, beside a single weight's: a quarter of the memory of the task; None where it has no limit."""
    return None if task.memory is None else parse_bytes(task.memory, "memory") // 4


def small_batch(model: nn.Module, batch: Batch) -> Batch:
    """The first samples of a batch, or all of it where the model does not take fewer."""
    if batch_size(batch) <= TRACED_SAMPLES:
        return batch
    few: Batch = rows(batch, 0, TRACED_SAMPLES)
    try:
        with evaluating(model):
            call(model, few)
    except Exception:  # whatever a stranger's forward raises, the whole batch is known to work
        return batch
    return few


def apart(model: nn.Module, batches: Iterable[Batch], first: int, then: int) -> tuple[list[Batch], list[Batch]]:
    """The first batches, of so many samples together, and those after them; one that is in both is cut where the model takes
    fewer samples. The others are empty where there are not as many as the first."""
    found: tuple[list[Batch], list[Batch]] = [], []
    left = [first, then]
    for batch in batches:
        size = max(1, batch_size(batch))
        cut = small_batch(model, batch) is not batch
        start = 0
        for place in (0, 1):
            taken = min(left[place], size - start) if cut else size - start if left[place] > 0 else 0
            if taken > 0:
                found[place].append(rows(batch, start, start + taken) if taken < size else batch)
                start += taken
                left[place] -= taken
        if max(left) <= 0:
            break
    return found[0], found[1] if then - left[1] >= first - left[0] else []


def in_parts(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[str, Batch]]:
    """The batches in parts, each with what its batch is called, of as many samples as autograd holds within the bytes of the
    weights; whole where the model takes no other number."""
    allowed = max(LEAST_BYTES, sum(tensor_bytes(parameter) for parameter in model.parameters()))
    each = 0.0
    for number, batch in enumerate(map(recorded, batches), 1):
        place = f"calibration batch {number}"
        few = small_batch(model, batch)
        if few is not batch:
            each = each or _held_bytes(model, few, place) / batch_size(few)
            yield from ((place, part) for part in parts(batch, math.ceil(batch_size(batch) * each / allowed) or 1))
        else:
            yield place, batch


def _held_bytes(model: nn.Module, batch: Batch, place: str) -> int:
    """What autograd keeps of a forward pass, beyond the parameters and the batch."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *leaves(batch)]}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would hold the graph that holds it, and no one ever frees that

    with torch.enable_grad(), slow_attention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = [each for each in leaves(attempt(model, batch, place)) if each.requires_grad]
    del outputs  # until here nothing was given back
    return sum(held.values())
