"""Steps at work in a training that is run by someone else: what the callbacks for other trainers share, without any of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from enxuto.checks import check_list, within
from enxuto.errors import RangeError
from enxuto.task import Step, Task
from enxuto.training.prepare import convert, prepare
from enxuto.training.tighten import Schedule

logger = logging.getLogger(__name__)


@dataclass
class Course:
    """A prepared `model` and its schedule, once a trainer says how many updates there will be.

    Raises: RangeError for `tight` outside 0...1; RecipeError for steps that cannot be rehearsed.
    """

    task: Task
    steps: Sequence[Step] = ()
    tight: float = 0.7
    model: nn.Module = field(init=False)
    schedule: Schedule | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_list(self.steps)
        self.steps = tuple(self.steps)
        if not within(self.tight, "[0, 1]"):
            raise RangeError(f"tight={self.tight!r} is the part of the training before steps are whole; use 0.7.")
        self.model = prepare(self.task, self.steps, gradual=self.tight > 0)

    def begin(self, updates: int, done: int = 0) -> None:
        """Of so many updates so many are done."""
        self.schedule = Schedule(self.model, self.steps, batches=updates, end=self.tight)
        self.schedule.load_state_dict({"done": done})

    def observe(self, optimizer: Optimizer) -> None:
        """Gradients are there, and the optimizer makes an update next."""
        if self.schedule is not None:
            self.schedule.observe(optimizer)

    def step(self) -> None:
        """The optimizer has made an update."""
        if self.schedule is not None:
            self.schedule.step()

    def end(self) -> nn.Module:
        """What ships; steps that the training left half done, as it ended early, are done to their end before."""
        if self.schedule is not None and self.schedule.strength < 1:
            logger.warning(
                "the training ended after %d updates, where its schedule is whole after %d; what was left is done now, and "
                "nothing was trained after it: train for longer, or begin with a smaller tight=.",
                self.schedule.done,
                self.schedule.last,
            )
            self.schedule.finish_()
        return convert(self.model)
