"""Compression inside a Lightning training: one callback, the rest is the user's own module and trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from enxuto.errors import TaskError
from enxuto.extras import explained
from enxuto.task import Step, Task
from enxuto.training.course import Course

with explained("ex.lightning"):
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from pytorch_lightning.callbacks import Callback  # what is used is the one that was imported before
    else:
        from lightning.pytorch.callbacks import Callback


class Compress(Callback):  # type: ignore[misc]
    """Trains a network with what will be shipped in view; after `trainer.fit` the attribute `small` is what ships.

    The task's model is the network that the LightningModule holds, as in `self.net`. When fitting begins, before the optimizer is
    made, a prepared copy takes its place there (`ex.prepare`); `steps` tighten after each update of the optimizer, however many
    batches it gathers, and are whole from the part `tight` of all updates on. Checkpoints of Lightning hold all of it:
    `trainer.fit(module, ckpt_path=...)` goes on. The task's own model stays as it is.
    Raises: TaskError, when fitting begins, if the module does not hold that network, or nobody says how long the training is;
    RecipeError for steps that cannot be rehearsed.
    """

    def __init__(self, task: Task, steps: Sequence[Step] = (), *, tight: float = 0.7) -> None:
        self.course = Course(task, steps, tight)
        self.small: nn.Module | None = None
        self._updates = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Puts the prepared network in the place of the task's."""
        if stage != "fit":
            return
        given, found = self.course.task.model, False
        for module in list(pl_module.modules()):
            for name, inner in list(module._modules.items()):
                if inner is given:
                    module._modules[name] = self.course.model
                found |= inner in (given, self.course.model)
        if not found:
            held = ", ".join(repr(name) for name, _ in pl_module.named_children()) or "nothing"
            raise TaskError(
                f"the task's model, {type(given).__name__}, is no part of {type(pl_module).__name__}, which holds {held}; keep "
                "the network in an attribute, as in self.net = net, and give Task(net, ...) that same object."
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Asks how long the training is."""
        updates = trainer.estimated_stepping_batches
        if not math.isfinite(updates):
            raise TaskError(
                "the trainer does not know how many batches there will be, so that nothing can tighten in time; give it "
                "max_steps=."
            )
        self._updates = trainer.global_step
        self.course.begin(int(updates), done=self._updates)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Shows the gradients to steps that look at them."""
        self.course.observe(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Tightens where the optimizer has made an update."""
        if trainer.global_step > self._updates:
            self._updates = trainer.global_step
            self.course.step()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Makes what ships."""
        self.small = self.course.end()
