"""Rate: the file becomes small while the network trains. `training.rate` holds the term that runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from enxuto.checks import named, within
from enxuto.errors import RangeError, RecipeError
from enxuto.layers.gates import Gate
from enxuto.sizes import parse_bytes
from enxuto.task import Task
from enxuto.training.rate import Rate as Running
from enxuto.training.teacher import Teacher


@dataclass(frozen=True)
class Rate:
    """The bits of all codes: a text is the bytes to come to ("6 kB"), a number the loss that a bit is worth.

    The same as `Recover(rate=)`. Raises: RangeError for neither.
    """

    rate: float | str = 3e-6

    def __post_init__(self) -> None:
        if isinstance(self.rate, str):
            parse_bytes(self.rate, "rate", unit=True)
        elif not within(self.rate, "(0, inf)"):
            raise RangeError(f"{named('rate', self.rate)} is the loss that a bit is worth; use for example 3e-6, or '6 kB'.")

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Running:
        """The term. Raises: RangeError when no weight has codes with a price, or bytes are too few; RecipeError beside gates."""
        if any(isinstance(module, Gate) for module in student.modules()):
            raise RecipeError(
                "rate prices the codes of weights that L0 or SoftThreshold close as if they were open; leave one of them out, or "
                "train with the rate afterwards."
            )
        if isinstance(self.rate, str):
            return Running(student, bytes=parse_bytes(self.rate, "rate"))
        return Running(student, weight=self.rate)
