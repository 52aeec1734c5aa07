"""A job within a limit of memory: what it needs at least, calibration in parts of fewer samples, and what training may take.

What is foreseen is the work on the network; what a user's own `evaluate`, `test` and loaders take is theirs to bound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from enxuto.batches import Batch, batch_size, leaves, parts, rows
from enxuto.calls import call, evaluating
from enxuto.errors import LimitError, TaskError
from enxuto.memory.prediction import predict, said_once
from enxuto.memory.profile import ACTIVATIONS, INPUTS
from enxuto.sizes import format_bytes, module_bytes, parse_bytes
from enxuto.steps.recover import Recover
from enxuto.surgery import duplicate
from enxuto.task import Step, Task

logger = logging.getLogger(__name__)
LIBRARIES_BYTES = 500_000_000  # of the runtime, the exporter, the trainer, tracing and compiled loops (measured: 390 to 470 MB)
COPIES = 6  # of the weights: an int8 file while its trial is compared (measured: 5.5); a step takes two
SAME = 1e-3  # relative difference of outputs that rounding explains


@dataclass(frozen=True, eq=False)
class InParts:
    """Batches of at most `size` samples, made from larger ones each time they are asked for."""

    whole: Iterable[Batch]
    size: int

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.whole:
            yield from parts(batch, -(-batch_size(batch) // self.size)) if batch_size(batch) > self.size else [batch]

    def __len__(self) -> int:
        return sum(1 for _ in self)


@said_once()
def allowed(task: Task, memory: str | int, steps: Sequence[Step] | None) -> tuple[Task, str]:
    """The same task for a job that takes at most `memory` beyond what the process holds, and what to know about it.

    Calibration comes in parts that fit, training has what is left beside the weights. `steps` is the recipe, None for a search.
    Raises: LimitError, with the least that would do, when one sample does not fit or the network takes no part of a batch.
    """
    limit = parse_bytes(memory, "memory")
    fixed = LIBRARIES_BYTES + COPIES * module_bytes(task.model)
    batch = max(task.calibration, key=batch_size)
    least = fixed + _forward_bytes(task.model, batch, 1)
    if least > limit:
        weights = format_bytes(module_bytes(task.model))
        raise LimitError(
            f"memory={memory!r} is asked for, but the weights of this network take {weights} and the job "
            f"needs {format_bytes(least)} with one sample at a time: {format_bytes(LIBRARIES_BYTES)} for libraries, {COPIES} "
            "times the weights for an export, and every tensor of a forward pass; allow at least that."
        )
    size, training = _samples_within(task, batch, limit - fixed), limit - LIBRARIES_BYTES - module_bytes(task.model)
    said = f"kept within memory={memory!r}: {format_bytes(training)} for training"
    if size < batch_size(batch):
        _check_rows(task, memory, size)
        said += f", calibration batches of {batch_size(batch)} samples taken {size} at a time"
        task = replace(task, calibration=InParts(task.calibration, size))
    task = replace(task, memory=training)
    logger.info("%s", said)
    for step in (Recover(),) if steps is None else steps:
        if isinstance(step, Recover):
            step.fitting(duplicate(task.model), task)
    return task, said


def _samples_within(task: Task, batch: Batch, limit_bytes: int) -> int:
    """The most samples of a batch whose forward pass fits, found by doubling: some networks must be run for it."""
    size, most = 1, batch_size(batch)
    while size < most and _forward_bytes(task.model, batch, min(2 * size, most)) <= limit_bytes:
        size = min(2 * size, most)
    return size


def _forward_bytes(model: nn.Module, batch: Batch, size: int) -> int:
    """All that a forward pass of so many samples makes, which ONNX Runtime holds at once while it calibrates an int8 file."""
    given = batch_size(batch)
    profile = predict(model, rows(batch, 0, size) if 0 < size < given else batch)
    made = sum(block.size_bytes for block in profile.blocks if block.category in (INPUTS, ACTIVATIONS))
    return max(made, profile.peak_bytes - module_bytes(model))


def _check_rows(task: Task, memory: str | int, size: int) -> None:
    """Raises: LimitError when samples do not come out as they do beside others."""
    few = rows(task.sample, 0, 2)  # kept no tensor of, two samples take less than what one was allowed for
    try:
        one, several = (_outputs(task.model, rows(task.sample, 0, count)) for count in (1, batch_size(few)))
        alone = all(
            len(a) == 1 and torch.allclose(a[0].double(), b[0].double(), rtol=SAME, atol=SAME * float(b[0].abs().double().max()))
            for a, b in zip(one, several, strict=True)
        )
    except (TaskError, RuntimeError, ValueError, IndexError):
        alone = False
    if not alone:
        raise LimitError(
            f"memory={memory!r} holds {size} of the {batch_size(task.sample)} samples of a calibration batch at a time, and the "
            "network's outputs for a sample alone are not those beside others; allow more, or give smaller batches yourself."
        )


def _outputs(model: nn.Module, batch: Any) -> list[torch.Tensor]:
    with evaluating(model):
        return list(leaves(call(model, batch)))
