"""What tightens while one trains: steps at a strength that grows from nothing to what ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from enxuto.checks import check_list, whole, within
from enxuto.errors import RangeError
from enxuto.task import Step, Task


@runtime_checkable
class Rehearsable(Protocol):
    """A step that can be tightened while a user trains: from `strength` 0 (not yet) to 1 (as it will be shipped)."""

    def rehearse_(self, model: nn.Module, strength: float) -> None: ...


@runtime_checkable
class Calibrated(Protocol):
    """A step that looks at the calibration batches once before a user trains."""

    def calibrate_(self, model: nn.Module, task: Task) -> None: ...


class Schedule:
    """Tightens the steps of a prepared model: call `step` after each batch.

    Nothing until `begin` (a fraction of all batches), everything from `end` on; between, the strength grows along the cubic
    of Zhu, Gupta 2017, "To prune or not to prune", eq. 1, in `updates` updates.
    Raises: RangeError when the fractions do not ascend in 0...1 or there is no batch.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: Sequence[Step],
        *,
        batches: int,
        begin: float = 0.0,
        end: float = 0.7,
        updates: int = 25,
    ) -> None:
        check_list(steps)
        fit = within(begin, "[0, 1]") and within(end, f"({begin}, 1]")
        if not (fit and whole(batches, 1) and whole(updates, 1)):
            raise RangeError(
                f"a schedule of batches={batches!r} in updates={updates!r} from begin={begin!r} to end={end!r} makes no sense; "
                "use whole numbers and 0 <= begin < end <= 1."
            )
        self.model, self.steps = model, [step for step in steps if isinstance(step, Rehearsable)]
        self.first, self.last = round(begin * batches), max(1, round(end * batches))
        self.every = max(1, (self.last - self.first) // updates)
        self.done = 0

    @property
    def strength(self) -> float:
        """How tight the steps are now, 0...1."""
        if self.done >= self.last:
            return 1.0
        part = (self.done - self.first) / max(1, self.last - self.first)
        return 1 - (1 - min(1.0, max(0.0, part))) ** 3

    def step(self) -> None:
        """One batch was trained; raises the strength when it is time."""
        self.done += 1
        due = self.first <= self.done < self.last and (self.done - self.first) % self.every == 0
        if due or self.done == self.last:
            for step in self.steps:
                step.rehearse_(self.model, self.strength)
