"""Compression inside a training by the Hugging Face Trainer: one callback, the rest is the user's own trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from enxuto.errors import TaskError
from enxuto.extras import explained
from enxuto.task import Step, Task
from enxuto.training.course import Course

with explained("ex.transformers"):
    from transformers import TrainerCallback


class Compress(TrainerCallback):  # type: ignore[misc]
    """Trains a network with what will be shipped in view; after `trainer.train()` the attribute `small` is what ships.

    The attribute `model` is the prepared copy of the task's model (`ex.prepare`), which the Trainer gets before it makes its
    optimizer: `Trainer(compress.model, ..., callbacks=[compress])`. `steps` tighten after each update of the optimizer, however
    many batches it gathers, and are whole from the part `tight` of all updates on. Checkpoints of the Trainer hold all of it:
    `trainer.train(resume_from_checkpoint=...)` goes on. The task's own model stays as it is.
    Raises: TaskError, when training begins, if the Trainer has another network; RecipeError for steps that cannot be rehearsed.
    """

    def __init__(self, task: Task, steps: Sequence[Step] = (), *, tight: float = 0.7) -> None:
        self.course = Course(task, steps, tight)
        self.small: nn.Module | None = None
        self._kept: Any = None

    @property
    def model(self) -> nn.Module:
        """The prepared network, to be trained."""
        return self.course.model

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Takes up the schedule where the Trainer is."""
        if model is not self.model:
            raise TaskError(
                f"the Trainer trains {type(model).__name__} of its own, not the prepared network; write "
                "Trainer(compress.model, ...)."
            )
        self._kept = vars(model).pop("save_pretrained", None)  # it refuses what from_pretrained cannot read; the Trainer can
        self.course.begin(state.max_steps, done=state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Shows the gradients to steps that look at them."""
        self.course.observe(getattr(optimizer, "optimizer", optimizer))  # accelerate hands out a cover of it

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tightens: the optimizer has made an update."""
        self.course.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Makes what ships."""
        if self._kept is not None:
            vars(self.model)["save_pretrained"] = self._kept
        self.small = self.course.end()
