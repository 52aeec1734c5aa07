"""The loop: batch after batch, update after update, and whatever is averaged, tightened or looked at meanwhile."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from enxuto.batches import parts, samples
from enxuto.calls import attempt, device_of, differentiating
from enxuto.errors import TaskError
from enxuto.progress import counted
from enxuto.training.average import Average
from enxuto.training.examples import Example, Examples
from enxuto.training.lone import lone_values
from enxuto.training.objective import Objective
from enxuto.training.optimizers import Options, made
from enxuto.training.schedules import SCHEDULES

logger = logging.getLogger(__name__)
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LONGEST = 5.0  # norm of all gradients, beyond which they are clipped


@dataclass
class Loop:
    """One training: `run` it, and `losses` has the loss of each batch, `alone` the batches of single values for a batch norm."""

    learning_rate: float
    weight_decay: float = 0.0
    devices: int = 1
    precision: Precision = "32-true"
    size: int | None = None  # samples of a pass; an update sees the whole batch
    seed: int = 0
    optimizer: str = "AdamW"
    options: Options | None = None
    schedule: str = "cosine"
    clip: float | None = LONGEST
    accumulate: int = 1  # batches of an update
    average: float = 0.0
    losses: list[float] = field(default_factory=list)
    alone: int = 0

    def updates(self, batches: int) -> int:
        """How many updates so many batches make; the last may have fewer than the others."""
        return -(-batches // self.accumulate)

    def run(
        self,
        student: nn.Module,
        objective: Objective,
        examples: Examples,
        after: Sequence[Callable[[], None]] = (),
        before: Sequence[Callable[[torch.optim.Optimizer], None]] = (),
    ) -> None:
        """Trains the student in place; `before` an update its gradients are there, clipped, and `after` it the weights are new.

        Raises: TaskError when a batch does not fit, the source is empty, or the loss or a weight becomes infinite.
        """
        from lightning_fabric import Fabric

        fabric = Fabric(accelerator="auto", devices=self.devices, precision=self.precision)
        fabric.launch()
        home = device_of(objective.task.model)
        optimizer = self._optimizer([student, *objective.modules])
        wrapped, optimizer = fabric.setup(student, optimizer)
        if objective.teacher is not None:
            objective.teacher.module = fabric.to_device(objective.teacher.module)
        for term in objective.modules:
            fabric.to_device(term)
        average = Average(student, self.average) if self.average else None
        then = [*after] if average is None else [*after, average.update_]
        gathered = Gathered(optimizer)
        with torch.random.fork_rng(), lone_values(student) as lone:
            torch.manual_seed(self.seed)
            wrapped.train()
            optimizer.zero_grad(set_to_none=True)
            for batch in counted(examples, "recovering", examples.total):
                weight = 1.0 if self.accumulate == 1 else gathered.weight(samples(batch))
                self._gradients_(fabric, wrapped, objective, fabric.to_device(batch), examples, weight)
                if not math.isfinite(self.losses[-1]):
                    break
                self.alone += bool(lone)
                lone.clear()
                if examples.done % self.accumulate and examples.done < examples.total:
                    continue
                gathered.mean_()
                self._update_(fabric, wrapped, optimizer, self.updates(examples.done) - 1, self.updates(examples.total), before)
                for follow in then:
                    follow()
        if average is not None:
            average.give_()
        student.to(home)
        self._check(student)

    def _optimizer(self, modules: Sequence[nn.Module]) -> torch.optim.Optimizer:
        """In one pass over the weights where it can be: gradients that a scaler made larger are clipped before it."""
        return made(
            self.optimizer,
            self.options,
            [each for module in modules for each in module.parameters()],
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=self.precision != "16-mixed",
        )

    def _gradients_(
        self, fabric: Any, wrapped: Any, objective: Objective, batch: Example, examples: Examples, weight: float
    ) -> None:
        """One batch forwards and backwards, in as many passes as it takes."""
        told = 0.0
        place = f"training batch {examples.done}"
        for (inputs, targets), part in _passes(batch, self.size):
            outputs = attempt(wrapped, inputs, place, objective.task.model)
            moment = objective.moment(wrapped, outputs, inputs, targets, (examples.done - 1) / examples.total)
            if examples.done == 1:
                objective.settle_(moment)
            loss = objective(moment) * part
            with differentiating(place):
                fabric.backward(loss if weight == 1 else loss * weight)
            told += float(loss.detach())
        self.losses.append(told)

    def _update_(
        self,
        fabric: Any,
        wrapped: Any,
        optimizer: Any,
        done: int,
        total: int,
        before: Sequence[Callable[[torch.optim.Optimizer], None]],
    ) -> None:
        """One update of the weights, after so many of all."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * SCHEDULES[self.schedule](done, total)
        if self.clip is not None:
            fabric.clip_gradients(wrapped, optimizer, max_norm=self.clip, error_if_nonfinite=False)
        for look in before:
            look(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _check(self, student: nn.Module) -> None:
        if not self.losses:
            raise TaskError("train said that it holds batches, but gave none; give a list or a DataLoader.")
        if not all(map(math.isfinite, self.losses)) or not all(bool(torch.isfinite(p).all()) for p in student.parameters()):
            raise TaskError(
                f"training diverged: the loss became {self.losses[-1]} after {len(self.losses)} batches; use a lower "
                f"learning_rate than {self.learning_rate}."
            )


class Gathered:
    """The gradients of the batches of one update: in the end their mean over all samples, however many each batch holds."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.first, self.sum = 0, 0.0

    def weight(self, samples: int) -> float:
        """What the next batch counts beside the first of the update."""
        self.first = self.first or samples
        self.sum += samples / self.first
        return samples / self.first

    @torch.no_grad()
    def mean_(self) -> None:
        """The gradients are whole; the next batch is the first again."""
        if self.sum > 1:
            for parameter in itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups):
                if parameter.grad is not None:
                    parameter.grad /= self.sum
        self.first, self.sum = 0, 0.0


def _passes(batch: Example, size: int | None) -> list[tuple[Example, float]]:
    """The batch in parts of at most `size` samples, each with its part of the loss."""
    if size is None:
        return [(batch, 1.0)]
    given = samples(batch)
    return [(part, samples(part) / given) for part in parts(batch, -(-given // size))]
