"""The loop: batch after batch, a learning rate that warms up and falls, and whatever tightens after each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.batches import parts, samples
from enxuto.calls import attempt, device_of, differentiating
from enxuto.errors import TaskError
from enxuto.progress import counted
from enxuto.training.examples import Example
from enxuto.training.objective import Objective

logger = logging.getLogger(__name__)
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WARM = 20  # the part of all batches that warms up is one in so many
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
    losses: list[float] = field(default_factory=list)
    alone: int = 0

    def run(
        self,
        student: nn.Module,
        objective: Objective,
        batches: Iterator[Example],
        total: int,
        after: Sequence[Callable[[], None]],
        before: Sequence[Callable[[torch.optim.Optimizer], None]] = (),
    ) -> None:
        """Trains the student in place; `before` an update its gradients are there, clipped, and `after` it a batch is done.

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
        with torch.random.fork_rng(), _lone_values(student) as lone:
            torch.manual_seed(self.seed)
            wrapped.train()
            for done, batch in enumerate(counted(batches, "recovering", total)):
                self._pace_(optimizer, done, total)
                optimizer.zero_grad(set_to_none=True)
                self.losses.append(self._gradients_(fabric, wrapped, objective, fabric.to_device(batch), done, total))
                fabric.clip_gradients(wrapped, optimizer, max_norm=LONGEST, error_if_nonfinite=False)
                if not math.isfinite(self.losses[-1]):
                    break
                for look in before:
                    look(optimizer)
                optimizer.step()
                for then in after:
                    then()
                self.alone += bool(lone)
                lone.clear()
        student.to(home)
        self._check(student)

    def _optimizer(self, modules: Sequence[nn.Module]) -> torch.optim.Optimizer:
        """AdamW, in one pass over the weights where it can be: gradients that a scaler made larger are clipped before it."""
        parameters = [each for module in modules for each in module.parameters()]
        fused = self.precision != "16-mixed" and all(each.is_floating_point() for each in parameters)
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused or None)

    def _pace_(self, optimizer: Any, done: int, total: int) -> None:
        share = pace(done, total, WARM)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * share

    def _gradients_(self, fabric: Any, wrapped: Any, objective: Objective, batch: Example, done: int, total: int) -> float:
        """One batch forwards and backwards, in as many passes as it takes; its loss."""
        told = 0.0
        for (inputs, targets), part in _passes(batch, self.size):
            outputs = attempt(wrapped, inputs, f"training batch {done + 1}", objective.task.model)
            moment = objective.moment(wrapped, outputs, inputs, targets, done / total)
            if not done:
                objective.settle_(moment)
            loss = objective(moment) * part
            with differentiating(f"training batch {done + 1}"):
                fabric.backward(loss)
            told += float(loss.detach())
        return told

    def _check(self, student: nn.Module) -> None:
        if not self.losses:
            raise TaskError("train said that it holds batches, but gave none; give a list or a DataLoader.")
        if not all(map(math.isfinite, self.losses)) or not all(bool(torch.isfinite(p).all()) for p in student.parameters()):
            raise TaskError(
                f"training diverged: the loss became {self.losses[-1]} after {len(self.losses)} batches; use a lower "
                f"learning_rate than {self.learning_rate}."
            )


def pace(done: int, total: int, warm: int) -> float:
    """The part of a learning rate that the next of `total` updates has: up in one `warm`th of them, then down a cosine."""
    return min((done + 1) / max(1, total // warm), 0.5 * (1 + math.cos(math.pi * done / total)))


def _passes(batch: Example, size: int | None) -> list[tuple[Example, float]]:
    """The batch in parts of at most `size` samples, each with its part of the loss."""
    if size is None:
        return [(batch, 1.0)]
    given = samples(batch)
    return [(part, samples(part) / given) for part in parts(batch, -(-given // size))]


@contextmanager
def _lone_values(model: nn.Module) -> Iterator[list[int]]:
    """Batch norms that get one value a channel, whose variance is none, use their running statistics for it.

    Yields a list that has grown when that happened.
    """
    seen: list[int] = []

    def before(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if norm.training and isinstance(given, Tensor) and given.numel() == given.shape[1]:
            norm.training = False
            seen.append(id(norm))

    def after(norm: nn.Module, inputs: object, outputs: object) -> None:
        norm.training = norm.training or id(norm) in seen

    norms = [it for it in model.modules() if isinstance(it, _BatchNorm) and it.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(before, with_kwargs=True) for norm in norms]
    hooks += [norm.register_forward_hook(after, always_call=True) for norm in norms]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
