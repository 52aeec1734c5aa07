"""How long training takes here: what is done only once (imports, compilations, workers that start) is not part of it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from enxuto.records import Record
from enxuto.steps.recover import Recover
from enxuto.task import Step, Task
from enxuto.training.examples import Examples

LATE = ("lightning_fabric", "torch._dynamo")
"""What is imported only when it is needed: seconds that must not be taken for work, and in which Ctrl-C costs the exports."""
FEW = 8  # batches that tell the time of one
SLOW_S = 5.0  # a batch that takes longer says enough by itself


def ready() -> None:
    """Imports what a search would import later, before its clock runs."""
    for name in LATE:
        importlib.import_module(name)


def seconds_per_epoch(task: Task) -> float:
    """How long one epoch of `Recover` takes, from a few batches of it: the first does not count, nor does starting."""
    ready()
    length = batches_of(task)

    def took(batches: int) -> float:
        return Recover(epochs=batches / length)(task.model, task)[1].seconds

    took(1)
    one = took(1)
    if one > SLOW_S:
        return one * length
    few = took(FEW)
    return length * ((few - one) / (FEW - 1) if few > one else few / FEW)


def seconds_seen(task: Task, recipe: Sequence[Step], records: Iterable[Record]) -> float | None:
    """How long an epoch took in a recipe that was run, its last training counted; None when it trained nothing."""
    trained = [record for step, record in zip(recipe, records, strict=True) if isinstance(step, Recover)]
    if not trained:
        return None
    return trained[-1].seconds / trained[-1].figures["batches"] * batches_of(task)


def batches_of(task: Task) -> int:
    """How many batches an epoch of `Recover` has. Raises: TaskError when there is none."""
    return Examples(task, 1.0).total
