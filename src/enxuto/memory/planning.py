"""What fits a limit and what it costs: batch, accumulation, checkpoints, precision, optimizer, as a table to choose from.

Every row was predicted as it would run (see `predict`); nothing is estimated by a formula but the time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.checks import named, whole
from enxuto.errors import LimitError, RangeError
from enxuto.memory.blocks import Choice, choices
from enxuto.memory.checkpoint import checkpointed
from enxuto.memory.prediction import predict
from enxuto.memory.profile import UPDATE, Profile
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision, resized, samples
from enxuto.progress import counted
from enxuto.sizes import format_bytes, parse_bytes, tensor_bytes
from enxuto.surgery import duplicate

logger = logging.getLogger(__name__)
FEW, ROUNDS = 8, 4
"""Samples and steps that tell how fast half precision is here; the first step does not count."""
ENOUGH = 16
"""Samples whose statistics a batch norm can do with (Wu, He 2018, "Group Normalization", figure 1)."""
MOST = 1 << 20
"""Samples beyond which no larger batch is looked for."""
Trainer = Literal["recover", "lightning", "transformers"]


@dataclass(frozen=True)
class Option:
    """One way to train within the limit.

    `batch_size` samples are in one forward and backward pass, `accumulation` passes make an update, the layers at `checkpoint`
    run twice. `time` is the predicted time of an update beside that of the whole batch in one pass without checkpoints, with
    the optimizer and precision asked for (None where it is not known). `exact` says that gradients are those of the whole
    batch: batch norms see one pass only.
    """

    batch_size: int
    accumulation: int
    checkpoint: tuple[str, ...]
    optimizer: str
    precision: Precision
    peak_bytes: int
    time: float | None
    exact: bool
    limit_bytes: int

    def settings(self, trainer: Trainer) -> dict[str, Any]:
        """The option as arguments: of the DataLoader and Trainer of Lightning, of TrainingArguments, or of Recover.

        For `checkpoint`, call `ex.memory.checkpoint_(model, option.checkpoint)` before training; Recover does it by itself.
        Raises: RangeError for another trainer.
        """
        if trainer == "recover":
            return {"memory": self.limit_bytes, "precision": self.precision}
        if trainer == "lightning":
            given: dict[str, Any] = {"batch_size": self.batch_size, "accumulate_grad_batches": self.accumulation}
            return given | {"precision": self.precision}
        if trainer == "transformers":
            given = {"per_device_train_batch_size": self.batch_size, "gradient_accumulation_steps": self.accumulation}
            return given | {"bf16": self.precision == "bf16-mixed", "fp16": self.precision == "16-mixed"}
        raise RangeError(f"trainer={trainer!r} is not known; use 'recover', 'lightning' or 'transformers'.")


@dataclass(frozen=True)
class Plan:
    """What fits: the options, the best first, and the largest batch as the training is now (0 when not even one sample fits)."""

    limit_bytes: int
    samples: int
    largest_batch: int
    options: tuple[Option, ...]

    @property
    def best(self) -> Option:
        """The first option: exact if there is one, with the optimizer and precision asked for, the fastest of these."""
        return self.options[0]


@dataclass(frozen=True)
class _Training:
    """A training step whose peak can be asked for in variations; every answer is kept."""

    model: nn.Module
    batch: Any
    loss: Loss
    optimizer: MakeOptimizer
    precision: Precision
    device: str | None
    least: int = 1  # samples of a pass
    pace: float | None = 1.0  # its time beside that of the training asked for, both with the whole batch
    known: dict[Any, Profile] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return _name(self.optimizer)

    def profile(self, size: int, accumulation: int = 1, paths: tuple[str, ...] = ()) -> Profile:
        accumulation = min(accumulation, 2)  # from the second pass on, gradients are there from the start
        key = (size, accumulation, paths)
        if key not in self.known:
            with checkpointed(self.model, paths):
                self.known[key] = predict(
                    self.model,
                    self.batch,
                    loss=self.loss,
                    optimizer=self.optimizer,
                    batch_size=size,
                    precision=self.precision,
                    accumulation=accumulation,
                    device=self.device,
                )
        return self.known[key]

    def checked(self) -> _Training:
        """With two samples as the least where a batch norm would see a single number for each channel."""
        if any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            try:
                self.profile(1)
            except ValueError as error:  # torch's own, from batch_norm
                if "more than 1 value per channel" not in str(error):
                    raise
                return replace(self, least=2)
        return self

    def peak(self, size: int, accumulation: int = 1, paths: tuple[str, ...] = ()) -> int:
        return self.profile(size, accumulation, paths).peak_bytes

    def time(self, wanted: int, size: int, passes: int, paths: tuple[str, ...]) -> float | None:
        """Predicted time of an update beside the whole batch without checkpoints in the training asked for."""
        whole = _work(self.profile(wanted), 1)
        return None if self.pace is None or not whole else self.pace * _work(self.profile(size, passes, paths), passes) / whole


def _work(profile: Profile, passes: int) -> float:
    """The work of an update; the profile holds at most two of its passes."""
    update = sum(moment.work for moment in profile.moments if moment.phase == UPDATE)
    return (sum(moment.work for moment in profile.moments) - update) * passes / min(passes, 2) + update


def plan(
    model: nn.Module,
    batch: Any,
    limit: str | int,
    *,
    loss: Loss,
    optimizer: MakeOptimizer = torch.optim.Adam,
    precision: Precision = "32-true",
    samples_per_update: int | None = None,
    device: str | None = None,
) -> Plan:
    """How to train within `limit` ("512 MB"), as a table of options.

    `batch` is a pair (inputs, targets); an update shall see `samples_per_update` samples, as many as the batch holds unless
    said otherwise. The limit is for the tensors of the step: Python and torch themselves take some hundred megabytes beside.
    Nothing is run but a few samples in half precision and in the precision asked for, to see which is faster here.
    Raises: LimitError, saying what is needed, when nothing fits; RangeError when the numbers make no sense.
    """
    limit_bytes, wanted = _asked(batch, limit, samples_per_update)
    _enough_for_weights(model, limit_bytes)
    base = _Training(model, batch, loss, optimizer, precision, device).checked()
    options = _options(base, limit_bytes, wanted)
    largest = largest_batch(base.peak, limit_bytes, guess=wanted, least=base.least)
    variations = list(_variations(base, wanted, min(FEW, largest)))
    for training in counted(variations, "planning", len(variations)):
        options += _in_parts(training, limit_bytes, wanted, ())
    if not options:
        raise _nothing_fits(base, limit_bytes, [_changed(base, other) for other in variations])
    asked = (_name(optimizer), precision)
    ranked = sorted(options, key=lambda it: ((it.optimizer, it.precision) != asked, *_rank(it)))
    return Plan(limit_bytes, wanted, largest, tuple(ranked))


def settle(
    model: nn.Module, batch: Any, limit: str | int, *, loss: Loss, optimizer: MakeOptimizer, precision: Precision = "32-true"
) -> Option:
    """The best option for the optimizer and precision given, without looking at others.

    Raises: LimitError when there is none.
    """
    limit_bytes, wanted = _asked(batch, limit, None)
    _enough_for_weights(model, limit_bytes)
    training = _Training(model, batch, loss, optimizer, precision, None).checked()
    options = _options(training, limit_bytes, wanted)
    if not options:
        raise _nothing_fits(training, limit_bytes)
    return min(options, key=_rank)


def _rank(option: Option) -> tuple[int, float, int]:
    """The order of options: exact ones, then those whose batch norms see enough samples, then the fastest."""
    few = 0 if option.exact else 1 + max(0, ENOUGH - option.batch_size)
    return few, option.time or 1.0, option.accumulation


def largest_batch(peak: Callable[[int], int], limit_bytes: int, *, guess: int = 1, most: int = MOST, least: int = 1) -> int:
    """The most samples whose peak is within the limit; 0 when not even `least` are.

    The peak grows with the samples, in pieces that are nearly straight, so each question is put where the line through the
    answers on both sides meets the limit.
    """
    first = least, peak(least)
    if first[1] > limit_bytes:
        return 0
    low, high = first, (most + 1, math.inf)  # what fits and what does not, with their peaks
    ask = max(guess, least + 1)
    while high[0] - low[0] > 1:
        before = high[0] - low[0]
        ask = min(max(ask, low[0] + 1), high[0] - 1)
        answer = (ask, peak(ask))
        low, high = (answer, high) if answer[1] <= limit_bytes else (low, answer)
        ends = (low, high) if high[0] <= most else (first, low)
        slope = (ends[1][1] - ends[0][1]) / max(1, ends[1][0] - ends[0][0])
        straight = low[0] + int((limit_bytes - low[1]) / slope) if slope > 0 else most
        slow = high[0] - low[0] > before / 2 and high[0] <= most
        ask = (low[0] + high[0]) // 2 if slow else straight
    return low[0]


def _asked(batch: Any, limit: str | int, wanted: int | None) -> tuple[int, int]:
    if wanted is not None and not whole(wanted, 1):
        raise RangeError(f"{named('samples_per_update', wanted)} is no number of samples; use 1 or more.")
    return parse_bytes(limit), samples(batch) if wanted is None else wanted


def _enough_for_weights(model: nn.Module, limit_bytes: int) -> None:
    weights = sum(tensor_bytes(tensor) for tensor in [*model.parameters(), *model.buffers()])
    if weights > limit_bytes:
        raise LimitError(
            f"the limit is {format_bytes(limit_bytes)}, but the weights of the model alone take {format_bytes(weights)}, and "
            f"training takes {format_bytes(2 * weights)} at the very least; allow more or compress the model first."
        )


def _nothing_fits(training: _Training, limit_bytes: int, others: Sequence[str] = ()) -> LimitError:
    every = tuple(choice.path for choice in choices(training.model, training.profile(training.least)))
    plain, least = training.peak(training.least), training.peak(training.least, 1, every)
    words = f", {format_bytes(least)} with all of its {len(every)} blocks checkpointed" if least < plain else ""
    few = "one sample" if training.least == 1 else f"{training.least} samples, the fewest that its batch norms take,"
    tried = f"; {', '.join(others[:-1])} and {others[-1]} do not fit either" if len(others) > 1 else ""
    return LimitError(
        f"the limit is {format_bytes(limit_bytes)}, but a training step of {few} with {_name(training.optimizer)} takes "
        f"{format_bytes(plain)}{words}{tried}; allow more, or compress the model first."
    )


def _changed(base: _Training, other: _Training) -> str:
    return _name(other.optimizer) if other.precision == base.precision else other.precision


def _variations(base: _Training, wanted: int, few: int) -> Iterator[_Training]:
    """The training with one thing changed: half precision, or an optimizer with fewer or smaller states."""
    if base.precision == "32-true":
        half = replace(base, precision="bf16-mixed", known={})
        pace = _measured_pace(base, half, few)
        if pace is not None or base.device is not None or not few:
            yield replace(half, pace=pace)
    whole = _work(base.profile(wanted), 1)
    for name, optimizer in lean_optimizers().items():
        if name != base.name:
            lean = replace(base, optimizer=optimizer, known={})
            yield replace(lean, pace=_work(lean.profile(wanted), 1) / whole if whole else None)


def _measured_pace(base: _Training, other: _Training, few: int) -> float | None:
    """The time of a step beside that of another precision, on a few samples; None when it cannot be run here."""
    if base.device is not None or not few:
        return None
    try:
        return _seconds(other, few) / _seconds(base, few)
    except Exception as error:
        logger.info("%s is left out, it does not run: %s", other.precision, " ".join(str(error).split()))
        return None


def _seconds(training: _Training, few: int) -> float:
    """The median time of a training step of a copy of the model."""
    model, step = duplicate(training.model).train(), Pass(training.loss, training.optimizer, training.precision)
    batch, times = resized(training.batch, few), []
    with torch.random.fork_rng():
        optimizer = step.make_optimizer(model)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            step.run(model, batch, optimizer)
            times.append(time.perf_counter() - start)
    return median(times[1:])


def lean_optimizers() -> dict[str, MakeOptimizer]:
    """Optimizers with few or small states, those of torchao where it is installed."""
    found: dict[str, MakeOptimizer] = {"SGD": torch.optim.SGD, "Adafactor": torch.optim.Adafactor}
    try:
        from torchao.optim import AdamW8bit

        found["AdamW8bit"] = AdamW8bit
    except ImportError:
        pass
    return found


def _options(training: _Training, limit_bytes: int, wanted: int) -> list[Option]:
    """The whole batch as it is; else with the cheapest checkpoints, and in parts; in parts and all checkpointed at the last."""
    if training.peak(wanted) <= limit_bytes:
        return [_option(training, wanted, wanted, 1, ())]
    candidates = choices(training.model, training.profile(wanted))
    chosen = cheapest(candidates, lambda paths: training.peak(wanted, 1, paths) <= limit_bytes)
    found = _in_parts(training, limit_bytes, wanted, ())
    if chosen is not None:
        found.append(_option(training, wanted, wanted, 1, tuple(it.path for it in chosen)))
    elif candidates:
        found += _in_parts(training, limit_bytes, wanted, tuple(it.path for it in candidates))
    return found


def _in_parts(training: _Training, limit_bytes: int, wanted: int, paths: tuple[str, ...]) -> list[Option]:
    """The batch in as few equal parts as fit, if any do."""
    if training.peak(wanted, 1, paths) <= limit_bytes:
        return [_option(training, wanted, wanted, 1, paths)]
    peak = partial(training.peak, accumulation=2, paths=paths)
    size = largest_batch(peak, limit_bytes, guess=max(1, wanted // 2), most=wanted, least=training.least)
    if not size:
        return []
    passes = -(-wanted // size)
    if wanted // passes < training.least:
        return []
    return [_option(training, wanted, -(-wanted // passes), passes, paths)]


def _option(training: _Training, wanted: int, size: int, passes: int, paths: tuple[str, ...]) -> Option:
    norms = any(isinstance(module, _BatchNorm) for module in training.model.modules())
    peak, time = training.peak(size, passes, paths), training.time(wanted, size, passes, paths)
    exact = passes == 1 or not norms
    return Option(size, passes, paths, training.name, training.precision, peak, time, exact, training.limit_bytes)


def cheapest(candidates: Sequence[Choice], fits: Callable[[tuple[str, ...]], bool]) -> list[Choice] | None:
    """The choices that cost least time among those tried, so that it fits; None when not even all together do.

    The shortest list that fits, of the choices sorted by what they save for their time; then without those it can spare.
    """
    ranked = sorted(candidates, key=lambda it: it.time / max(1, it.saved_bytes))

    def paths(chosen: Sequence[Choice]) -> tuple[str, ...]:
        return tuple(it.path for it in candidates if it in chosen)

    low, high = 0, len(ranked)
    if not ranked or not fits(paths(ranked)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(paths(ranked[:middle])) else (middle, high)
    chosen = ranked[:high]
    for spare in sorted(chosen, key=lambda it: -it.time):
        rest = [it for it in chosen if it is not spare]
        if fits(paths(rest)):
            chosen = rest
    return chosen


def _name(optimizer: MakeOptimizer) -> str:
    return getattr(optimizer, "__name__", type(optimizer).__name__)
