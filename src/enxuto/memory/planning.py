"""What fits a limit and what it costs: batch, accumulation, checkpoints, precision, optimizer, as a table to choose from.

Every row was predicted as it would run (see `predict`); nothing is estimated by a formula but the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.checks import named, whole
from enxuto.errors import LimitError, RangeError
from enxuto.memory.blocks import Choice, choices
from enxuto.memory.checkpoint import checkpointed
from enxuto.memory.prediction import predict
from enxuto.memory.profile import Profile
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision, samples
from enxuto.progress import counted
from enxuto.sizes import format_bytes, parse_bytes, tensor_bytes

MOST = 1 << 20
"""Samples beyond which no larger batch is looked for."""
Trainer = Literal["recover", "lightning", "transformers"]


@dataclass(frozen=True)
class Option:
    """One way to train within the limit.

    `batch_size` samples are in one forward and backward pass, `accumulation` passes make an update, the layers at
    `checkpoint` run twice. `time` is the predicted time of an update beside that of one pass without checkpoints (None where
    it depends on the device). `exact` says that gradients are those of the whole batch: batch norms see one pass only.
    """

    batch_size: int
    accumulation: int
    checkpoint: tuple[str, ...]
    optimizer: str
    precision: Precision
    peak_bytes: int
    time: float | None
    exact: bool

    def settings(self, trainer: Trainer) -> dict[str, Any]:
        """The option as arguments: of the DataLoader and Trainer of Lightning, of TrainingArguments, or of Recover.

        Layers to checkpoint are for `ex.memory.checkpoint_(model, paths)`, before training; Recover does it by itself.
        Raises: RangeError for another trainer.
        """
        if trainer == "recover":
            return {"memory": self.peak_bytes, "precision": self.precision}
        if trainer == "lightning":
            given: dict[str, Any] = {"batch_size": self.batch_size, "accumulate_grad_batches": self.accumulation}
            given |= {"precision": self.precision}
        elif trainer == "transformers":
            given = {"per_device_train_batch_size": self.batch_size, "gradient_accumulation_steps": self.accumulation}
            given |= {"bf16": self.precision == "bf16-mixed", "fp16": self.precision == "16-mixed"}
        else:
            raise RangeError(f"trainer={trainer!r} is not known; use 'recover', 'lightning' or 'transformers'.")
        return given | ({"checkpoint": list(self.checkpoint)} if self.checkpoint else {})


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
    known: dict[Any, Profile] = field(default_factory=dict)

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

    def peak(self, size: int, accumulation: int = 1, paths: tuple[str, ...] = ()) -> int:
        return self.profile(size, accumulation, paths).peak_bytes

    @cached_property
    def least(self) -> int:
        """The fewest samples that can be trained on: two where one is refused, as by a batch norm of vectors."""
        try:
            self.profile(1)
        except Exception as refused:
            try:
                self.profile(2)
            except Exception:
                raise refused from None
            return 2
        return 1

    def largest(self, limit_bytes: int, guess: int, most: int, accumulation: int = 1, paths: tuple[str, ...] = ()) -> int:
        return largest_batch(
            lambda size: self.peak(size, accumulation, paths), limit_bytes, guess=guess, least=self.least, most=most
        )


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
    Raises: LimitError, saying what is needed, when nothing fits; RangeError when the numbers make no sense.
    """
    Pass(loss, optimizer, precision).check(model, batch)
    limit_bytes, wanted = _asked(batch, limit, samples_per_update)
    _enough_for_weights(model, limit_bytes)
    base = _Training(model, batch, loss, optimizer, precision, device)
    options = _options(base, _name(optimizer), limit_bytes, wanted)
    variations = list(_variations(base))
    for training, name in counted(variations, "planning", len(variations)):
        options += _in_parts(training, name, limit_bytes, wanted, (), None if training.precision != precision else 0.0)
    if not options:
        raise _nothing_fits(base, limit_bytes)
    asked = (_name(optimizer), precision)
    ranked = sorted(options, key=lambda it: ((it.optimizer, it.precision) != asked, *_rank(it)))
    most = MOST if base.profile(wanted).predicted else wanted  # what must really run is not tried larger than asked for
    return Plan(limit_bytes, wanted, base.largest(limit_bytes, guess=wanted, most=most), tuple(ranked))


def settle(
    model: nn.Module, batch: Any, limit: str | int, *, loss: Loss, optimizer: MakeOptimizer, precision: Precision = "32-true"
) -> Option:
    """The best option for the optimizer and precision given, without looking at others.

    Raises: LimitError when there is none.
    """
    limit_bytes, wanted = _asked(batch, limit, None)
    _enough_for_weights(model, limit_bytes)
    training = _Training(model, batch, loss, optimizer, precision, None)
    options = _options(training, _name(optimizer), limit_bytes, wanted)
    if not options:
        raise _nothing_fits(training, limit_bytes)
    return min(options, key=_rank)


def _rank(option: Option) -> tuple[bool, float, int]:
    return not option.exact, option.time or 1.0, option.accumulation


def largest_batch(peak: Callable[[int], int], limit_bytes: int, *, guess: int = 1, least: int = 1, most: int = MOST) -> int:
    """The most samples, from `least` to `most`, whose peak is within the limit; 0 when not even the least is.

    The peak grows with the samples, in pieces that are nearly straight, so each question is put where the line through the
    answers on both sides meets the limit.
    """
    first = (least, peak(least))
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


def _nothing_fits(training: _Training, limit_bytes: int) -> LimitError:
    size = training.least
    every = tuple(choice.path for choice in choices(training.model, training.profile(size)))
    plain, least = training.peak(size), training.peak(size, 1, every)
    words = f", {format_bytes(least)} with all of its {len(every)} blocks checkpointed" if least < plain else ""
    few = "one sample" if size == 1 else f"{size} samples"
    return LimitError(
        f"the limit is {format_bytes(limit_bytes)}, but a training step of {few} takes {format_bytes(plain)}{words}; "
        "allow more, choose an optimizer with fewer states (torch.optim.SGD), or compress the model first."
    )


def _variations(base: _Training) -> Iterator[tuple[_Training, str]]:
    """The training with one thing changed: half precision, or an optimizer with fewer or smaller states."""
    if base.precision == "32-true":
        yield replace(base, precision="bf16-mixed", known={}), _name(base.optimizer)
    for name, optimizer in lean_optimizers().items():
        if name != _name(base.optimizer):
            yield replace(base, optimizer=optimizer, known={}), name


def lean_optimizers() -> dict[str, MakeOptimizer]:
    """Optimizers with few or small states, those of torchao where it is installed."""
    found: dict[str, MakeOptimizer] = {"SGD": torch.optim.SGD, "Adafactor": torch.optim.Adafactor}
    try:
        from torchao.optim import AdamW8bit

        found["AdamW8bit"] = AdamW8bit
    except ImportError:
        pass
    return found


def _options(training: _Training, name: str, limit_bytes: int, wanted: int) -> list[Option]:
    """The whole batch as it is; else with the cheapest checkpoints, and in parts; in parts and all checkpointed at the last."""
    if training.peak(wanted) <= limit_bytes:
        return [_option(training, name, wanted, 1, (), 0.0)]
    candidates = choices(training.model, training.profile(wanted))
    chosen = cheapest(candidates, lambda paths: training.peak(wanted, 1, paths) <= limit_bytes)
    found = _in_parts(training, name, limit_bytes, wanted, (), 0.0)
    if chosen is not None:
        found.append(_option(training, name, wanted, 1, tuple(it.path for it in chosen), sum(it.time for it in chosen)))
    elif candidates:
        every, time = tuple(it.path for it in candidates), sum(it.time for it in candidates)
        found += _in_parts(training, name, limit_bytes, wanted, every, time)
    return found


def _in_parts(
    training: _Training, name: str, limit_bytes: int, wanted: int, paths: tuple[str, ...], time: float | None
) -> list[Option]:
    """The batch in as few equal parts as fit, if any do."""
    if training.peak(wanted, 1, paths) <= limit_bytes:
        return [_option(training, name, wanted, 1, paths, time)]
    size = training.largest(limit_bytes, guess=max(1, wanted // 2), most=wanted, accumulation=2, paths=paths)
    passes = -(-wanted // size) if size else 0
    if not size or wanted // passes < training.least:
        return []
    return [_option(training, name, -(-wanted // passes), passes, paths, time)]


def _option(training: _Training, name: str, size: int, passes: int, paths: tuple[str, ...], more_time: float | None) -> Option:
    norms = any(isinstance(module, _BatchNorm) for module in training.model.modules())
    time = None if more_time is None else 1.0 + more_time
    exact = passes == 1 or not norms
    return Option(size, passes, paths, name, training.precision, training.peak(size, passes, paths), time, exact)


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
