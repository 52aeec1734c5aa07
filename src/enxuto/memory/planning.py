"""What fits a limit and what it costs: batch, accumulation, checkpoints, precision, optimizer, as a table to choose from.

Every row was predicted as it would run (see `predict`); nothing is estimated by a formula but the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.batches import leaves, samples
from enxuto.checks import named, whole
from enxuto.errors import LimitError, RangeError
from enxuto.memory.blocks import Choice, choices
from enxuto.memory.prediction import said_once
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision
from enxuto.memory.trials import FEW, Training, measured_pace
from enxuto.progress import counted
from enxuto.sizes import format_bytes, parse_bytes, tensor_bytes

ENOUGH = 16
"""Samples whose statistics a batch norm can do with (Wu, He 2018, "Group Normalization", figure 1)."""
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


@said_once()
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
    Pass(loss, optimizer, precision).check(model, batch)
    limit_bytes, wanted = _asked(batch, limit, samples_per_update)
    _enough_for_weights(model, limit_bytes)
    asked = Training(model, batch, loss, optimizer, precision, device, wanted)
    options = _options(asked, limit_bytes)
    largest = asked.largest(limit_bytes)
    others = list(_others(asked, min(FEW, largest)))
    for training in counted(others, "planning", len(others)):
        options += _in_parts(training, limit_bytes, ())
    if not options:
        raise _nothing_fits(asked, limit_bytes, others)
    ranked = sorted(options, key=lambda it: ((it.optimizer, it.precision) != (asked.name, precision), *_rank(it)))
    return Plan(limit_bytes, wanted, largest, tuple(ranked))


@said_once()
def settle(
    model: nn.Module, batch: Any, limit: str | int, *, loss: Loss, optimizer: MakeOptimizer, precision: Precision = "32-true"
) -> Option:
    """The best option for the optimizer and precision given, without looking at others, where the batch is there as a whole.

    Raises: LimitError when there is none.
    """
    limit_bytes, wanted = _asked(batch, limit, None)
    _enough_for_weights(model, limit_bytes)
    training = Training(model, batch, loss, optimizer, precision, None, wanted)
    options = _options(training, limit_bytes, held_bytes=sum(map(tensor_bytes, leaves(batch))))
    if not options:
        raise _nothing_fits(training, limit_bytes)
    return min(options, key=_rank)


def _rank(option: Option) -> tuple[int, float, int]:
    """The order of options: exact ones, then those whose batch norms see enough samples, then the fastest."""
    few = 0 if option.exact else 1 + max(0, ENOUGH - option.batch_size)
    return few, option.time or 1.0, option.accumulation


def _asked(batch: Any, limit: str | int, wanted: int | None) -> tuple[int, int]:
    if wanted is not None and not whole(wanted, 1):
        raise RangeError(f"{named('samples_per_update', wanted)} is no number of samples; use 1 or more.")
    return parse_bytes(limit, "limit"), samples(batch) if wanted is None else wanted


def _enough_for_weights(model: nn.Module, limit_bytes: int) -> None:
    weights = sum(tensor_bytes(tensor) for tensor in [*model.parameters(), *model.buffers()])
    if weights > limit_bytes:
        raise LimitError(
            f"the limit is {format_bytes(limit_bytes)}, but the weights of the model alone take {format_bytes(weights)}, and "
            f"training takes {format_bytes(2 * weights)} at the very least; allow more or compress the model first."
        )


def _nothing_fits(training: Training, limit_bytes: int, others: Sequence[Training] = ()) -> LimitError:
    size = training.least
    every = tuple(choice.path for choice in choices(training.model, training.profile(size)))
    plain, least = training.peak(size), training.peak(size, 1, every)
    words = f", {format_bytes(least)} with all of its {len(every)} blocks checkpointed" if least < plain else ""
    few = "one sample" if size == 1 else f"{size} samples, the fewest that its batch norms take,"
    names = [it.precision if it.precision != training.precision else it.name for it in others]
    tried = f"; {', '.join(names[:-1])} and {names[-1]} do not fit either" if len(names) > 1 else ""
    return LimitError(
        f"the limit is {format_bytes(limit_bytes)}, but a training step of {few} with {training.name} takes "
        f"{format_bytes(plain)}{words}{tried}; allow more, or compress the model first."
    )


def _others(asked: Training, few: int) -> Iterator[Training]:
    """The training with one thing changed: half precision, or an optimizer with fewer or smaller states."""
    if asked.precision == "32-true":
        half = replace(asked, precision="bf16-mixed", known={})
        pace = measured_pace(asked, half, few)
        if pace is not None or asked.device is not None or not few:
            yield replace(half, pace=pace)
    work = asked.work(asked.wanted)
    for name, optimizer in lean_optimizers().items():
        if name != asked.name:
            lean = replace(asked, optimizer=optimizer, known={})
            yield replace(lean, pace=lean.work(lean.wanted) / work if work else None)


def lean_optimizers() -> dict[str, MakeOptimizer]:
    """Optimizers with few or small states, those of torchao where it is installed."""
    found: dict[str, MakeOptimizer] = {"SGD": torch.optim.SGD, "Adafactor": torch.optim.Adafactor}
    try:
        from torchao.optim import AdamW8bit

        found["AdamW8bit"] = AdamW8bit
    except ImportError:
        pass
    return found


def _options(training: Training, limit_bytes: int, held_bytes: int = 0) -> list[Option]:
    """The whole batch as it is; else with the cheapest checkpoints, and in parts; in parts and all checkpointed at the last.

    `held_bytes` are there beside a part of the batch.
    """
    wanted = training.wanted
    if training.peak(wanted) <= limit_bytes:
        return [_option(training, limit_bytes, wanted, 1, ())]
    candidates = choices(training.model, training.profile(wanted))
    chosen = cheapest(candidates, lambda paths: training.peak(wanted, 1, paths) <= limit_bytes)
    found = _in_parts(training, limit_bytes - held_bytes, ())
    if chosen is not None:
        found.append(_option(training, limit_bytes, wanted, 1, tuple(it.path for it in chosen)))
    elif candidates:
        found += _in_parts(training, limit_bytes - held_bytes, tuple(it.path for it in candidates))
    return found


def _in_parts(training: Training, limit_bytes: int, paths: tuple[str, ...]) -> list[Option]:
    """The batch in as few equal parts as fit, if any do."""
    wanted = training.wanted
    if training.peak(wanted, 1, paths) <= limit_bytes:
        return [_option(training, limit_bytes, wanted, 1, paths)]
    passes = training.fewest_passes(limit_bytes, paths)
    if not passes or wanted // passes < training.least:
        return []
    return [_option(training, limit_bytes, -(-wanted // passes), passes, paths)]


def _option(training: Training, limit_bytes: int, size: int, passes: int, paths: tuple[str, ...]) -> Option:
    norms = any(isinstance(module, _BatchNorm) for module in training.model.modules())
    peak, time = training.peak(size, passes, paths), training.time(size, passes, paths)
    exact = passes == 1 or not norms
    return Option(size, passes, paths, training.name, training.precision, peak, time, exact, limit_bytes)


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
