"""Tune: biases, norms and the scales of weights move until the outputs are the original's again, as near as they come."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from enxuto.batches import batch_size
from enxuto.checks import named, whole, within
from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, RangeError
from enxuto.evidence.gradients import UNREACHED
from enxuto.records import Change, Record, reasons
from enxuto.select import Patterns, select
from enxuto.surgery import borrowed, to_float
from enxuto.task import Task, check_call
from enxuto.training.tuning import Lever, Tuning, Wanted, halves, harmed, levers, together_off

SLOWER = (4, 16)  # times as slow it is tried again where outputs came no nearer


@dataclass(frozen=True)
class Tune:
    """Vectors (biases, norms) and one factor for each weight, by the outputs of the original on the calibration batches.

    Needs neither labels nor training data; codes and zeros stay, and so does the size of the file. Put it behind the steps that
    changed weights. Each eighth of the samples is kept aside: what does not bring their outputs nearer is given up.
    `passes` over the other samples cost what as many epochs on them would; `learning_rate` is about the part of the outputs'
    spread by which one update moves them.
    Raises: RangeError for passes that are no whole number of at least 1, or a learning rate that is not above 0.
    Source: see `training.tuning`.
    """

    passes: int = 30
    learning_rate: float = 0.03
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        if not whole(self.passes, 1):
            raise RangeError(f"{named('passes', self.passes)} is no number of passes over the samples; use 1 or more, as 30.")
        if not within(self.learning_rate, "(0, inf)"):
            raise RangeError(f"{named('learning_rate', self.learning_rate)} is not a positive number; the default is 0.03.")

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The tuned copy.

        Raises: NothingChangedError when nothing can be tuned, or by too few samples, or the outputs of those kept aside came no
        nearer; TaskError when the network fails on them.
        """
        check_call(self, model, task)
        start = time.monotonic()
        select(borrowed(model), self.layers, lambda module: True)
        by, aside = halves(model, list(task.calibration))
        wanted = Wanted.of(task.model, [*by, *aside], task.outputs)
        before = wanted.off(model, len(by))
        if not any(before.values()):
            raise NothingChangedError(
                f"{self} would change nothing: outputs of samples kept aside are the original's as they are; put it behind the "
                "steps that change weights."
            )
        for rate in (self.learning_rate, *(self.learning_rate / times for times in SLOWER)):
            made, record = self._tuned(model, task, wanted, len(by), rate)
            after = wanted.off(made, len(by))
            if together_off(after) < together_off(before) and not harmed(before, after):
                figures = {"output_error_before": together_off(before), "output_error": together_off(after), **record.figures}
                return separate_(made, model), replace(record, figures=figures, seconds=time.monotonic() - start)
            del made, record  # before the next takes memory
        worse = harmed(before, after) or [*after]
        told = ", ".join(
            f"'{name}' is {before[name]:.3g} of its spread off the original's, and {after[name]:.3g}" for name in worse
        )
        raise NothingChangedError(
            f"{self} would change nothing for the better, by samples kept aside: {told} when tuned at a rate of {rate:.3g}; give "
            f"more than {sum(batch_size(batch) for _, batch in wanted.parts)} samples or another learning_rate, or leave it out."
        )

    def _tuned(self, model: nn.Module, task: Task, wanted: Wanted, count: int, rate: float) -> tuple[nn.Module, Record]:
        """A copy tuned at this rate by so many parts of what is wanted, and what moved in it."""
        made = borrowed(model)
        plain = to_float(made).requires_grad_(False)
        given, missing = levers(made, plain, self.layers, wanted.parts[0][1], task.seed, task.outputs)
        updates = Tuning(self.passes, rate, task.seed).run_(plain, given, wanted, count)
        pulled = [lever for lever in given if lever.pulled]
        missing |= {lever.site.key: UNREACHED for lever in given if not lever.pulled}
        left = tuple(Change(key, "left as it was", why) for key, why in missing.items())
        if not pulled:
            why = f" ({reasons(left)})" if left else ""
            raise NothingChangedError(f"{self} would change nothing: no parameter moves the outputs{why}; leave the step out.")
        figures = {"updates": float(updates), "learning_rate": rate}
        return made, Record(str(self), tuple(map(_settled_, pulled)), left, figures)


@torch.no_grad()
def _settled_(lever: Lever) -> Change:
    """Puts what was found into the layer for good, and says what it is."""
    if lever.unit is None:
        gain = lever.change.exp()
        lever.site.scale_(gain)
        return Change(lever.site.key, "scaled", f"{float(gain):.3f} times what it was")
    now = lever.now()
    fitted = lever.site.settle_(now)
    return Change(lever.site.key, f"moved{fitted}", f"by {_rms(now - lever.start):.2g}, values of {_rms(lever.start):.2g}")


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.double().square().mean()))
