"""What the user brings (`Task`) and wants (`Target`), and what a `Step` is that takes them: plain data with its checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import check_filled
from enxuto.checks import named, whole, within
from enxuto.errors import RangeError, TargetError, TaskError
from enxuto.outputs import Outputs, check_kinds, output_tensors, said_of
from enxuto.records import Record
from enxuto.sizes import parse_bytes, parse_fraction
from enxuto.soundness import check_copies, check_finite, check_plain, check_runs

Evaluate = Callable[[nn.Module], "float | Tensor"]
"""Quality of a model, higher is better: one number, or one value per sample [samples]."""


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model and what is needed to compress it well.

    The least is a model and `calibration`: sample inputs, no labels. `evaluate` gives quality on validation data
    (higher is better; one value per sample makes differences paired). `train` (batches of inputs and targets) and
    `loss(outputs, targets)` let steps recover what they lost. `test` is called once, at the very end. `outputs` says what
    outputs are, where no labels do: "classes" (a score for each), "values" or "ignore", one word for all or a dict by name.
    `memory` ("2 GB") bounds the tensors of a training step, as `compress(memory=)` sets it. `also` judges a network by what
    else it should do, by name, as by an old task while it learns a new one: the record says what of it was given up.
    Raises: TaskError when the model has NaN or infinite weights, fails on its own sample inputs, or nothing was given.
    """

    model: nn.Module
    calibration: Iterable[Batch] = field(kw_only=True)
    evaluate: Evaluate | None = field(default=None, kw_only=True)
    train: Iterable[Any] | None = field(default=None, kw_only=True)
    loss: Callable[[Any, Any], Tensor] | None = field(default=None, kw_only=True)
    test: Evaluate | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    outputs: Outputs | None = field(default=None, kw_only=True)
    memory: str | int | None = field(default=None, kw_only=True)
    also: Mapping[str, Evaluate] = field(default_factory=dict, kw_only=True)
    name: str = field(default="", kw_only=True)  # the title of the report; the class of the model unless given

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(f"model is {type(self.model).__name__}, not a torch.nn.Module; pass the network itself.")
        check_plain(self.model)
        for name in ("evaluate", "loss", "test"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TaskError(f"{name} is {type(getattr(self, name)).__name__}, not a function; pass a callable.")
        if not isinstance(self.also, Mapping) or not all(
            isinstance(name, str) and callable(it) for name, it in self.also.items()
        ):
            raise TaskError(f"{named('also', self.also)} names no functions; write also={{'the old task': evaluate_old}}.")
        if not whole(self.seed, 0, 2**63 - 1):
            raise TaskError(f"{named('seed', self.seed)} is no whole number from 0 to 2**63 - 1; use for example 0.")
        if self.memory is not None:
            parse_bytes(self.memory, "memory")
        if not isinstance(self.name, str):
            raise TaskError(f"{named('name', self.name)} is no text; it is the title of the report.")
        if self.train is not None and (isinstance(self.train, (str, Mapping, Tensor)) or not isinstance(self.train, Iterable)):
            raise TaskError(
                f"train is {type(self.train).__name__}, not a list or DataLoader of batches; each is a pair (inputs, targets)."
            )
        if isinstance(self.calibration, (str, Tensor, Mapping)) or not isinstance(self.calibration, Iterable):
            raise TaskError(
                f"calibration is {type(self.calibration).__name__} and must be a list of input batches; for one batch x write "
                "calibration=[x]."
            )
        check_finite(self.model)
        batches = self.calibration
        if not isinstance(batches, Sequence) and not hasattr(batches, "__len__"):
            object.__setattr__(self, "calibration", list(batches))  # a generator would be empty the second time
        for number, batch in enumerate(self.calibration if isinstance(self.calibration, (list, tuple)) else (), 1):
            check_filled(batch, f"calibration batch {number}")  # of a loader the others show when they are read
        check_kinds(self.outputs)
        said_of(output_tensors(check_runs(self.model, self.sample)), self.outputs)
        check_copies(self.model, self.sample)

    @property
    def sample(self) -> Batch:
        """The first calibration batch.

        Raises: TaskError when there is none.
        """
        for batch in self.calibration:
            return batch
        raise TaskError("calibration holds no batch; give at least one batch of sample inputs.")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the result must reach; whatever is not given is free.

    `size` in bytes or as "100 kB" (of the .nxt file); `compression` before / after; `macs` and `latency` as fractions
    left (0.5 = half); `max_drop` the quality that may be lost, absolute (0.005 = half a point), at most what the original has.
    Without it the goal is the best quality that fits the rest; with it, where not all can be had, it comes first.
    Raises: TargetError or RangeError when a goal makes no sense.
    """

    size: int | str | None = None
    compression: float | None = None
    macs: float | None = None
    latency: float | None = None
    max_drop: float | str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", parse_bytes(self.size))
        if self.max_drop is not None:
            given = self.max_drop
            object.__setattr__(self, "max_drop", parse_fraction(given, "max_drop"))
            if not 0 <= self.drop < math.inf:
                raise RangeError(f"max_drop={self.max_drop} is not in [0, inf); write 0.005 or '0.5%' for half a point.")
            if isinstance(given, str) and given.strip().endswith("%") and self.drop > 1:
                raise RangeError(f"max_drop={given!r} is more than all there is; write 0.005 or '0.5%' for half a point.")
        if self.compression is not None and not within(self.compression, "[1, inf)"):
            raise RangeError(
                f"{named('compression', self.compression)} is before / after and must be at least 1; write for example 20."
            )
        for name in ("macs", "latency"):
            value = getattr(self, name)
            if value is not None and not within(value, "(0, 1]"):
                raise RangeError(f"{named(name, value)} is the fraction left and must be in (0, 1]; write 0.5 for half.")
        if all(getattr(self, name) is None for name in ("size", "compression", "macs", "latency", "max_drop")):
            raise TargetError("the target is empty; give at least one of size, compression, macs, latency, max_drop.")

    @property
    def drop(self) -> float:
        """`max_drop` as a number; infinite when it was not given."""
        return math.inf if self.max_drop is None else float(self.max_drop)

    def limit_bytes(self, original_bytes: int) -> float:
        """The largest file in bytes that meets both size and compression; infinite when neither was given."""
        limits = [math.inf]
        if self.size is not None:
            limits.append(float(self.size))
        if self.compression is not None:
            limits.append(original_bytes / self.compression)
        return min(limits)


@runtime_checkable
class Step(Protocol):
    """A frozen dataclass that turns a model into a smaller one and says what it did; it never edits its input."""

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]: ...


def check_call(step: Step, model: object, task: object) -> None:
    """Raises TaskError where a step was called with anything else than a model and a task."""
    for name, value, kind in (("model", model, nn.Module), ("task", task, Task)):
        if not isinstance(value, kind):
            how = "step(network, ex.Task(network, calibration=[batch]))"
            raise TaskError(
                f"{name} is {type(value).__name__}, and {type(step).__name__} takes a network and a task; write {how}."
            )
