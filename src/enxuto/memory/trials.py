"""A training step whose memory and time can be asked for in variations: other batches, passes, checkpoints, optimizers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import nn

from enxuto.batches import resized
from enxuto.copies import copied
from enxuto.memory.checkpoint import checkpointed
from enxuto.memory.prediction import predict
from enxuto.memory.profile import UPDATE, Profile
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision

logger = logging.getLogger(__name__)
FEW, ROUNDS = 8, 4
"""Samples and steps that tell how fast half precision is here; the first step does not count."""
MOST = 1 << 20
"""Samples beyond which no larger batch is looked for."""


@dataclass(frozen=True)
class Training:
    """A training step with `wanted` samples an update; every profile is predicted once.

    `pace` is its time beside that of the training that was asked for, both with the whole batch; None where it is not known.
    """

    model: nn.Module
    batch: Any
    loss: Loss
    optimizer: MakeOptimizer
    precision: Precision
    device: str | None
    wanted: int
    pace: float | None = 1.0
    known: dict[Any, Profile] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the optimizer is called."""
        return getattr(self.optimizer, "__name__", type(self.optimizer).__name__)

    def profile(self, size: int, accumulation: int = 1, paths: tuple[str, ...] = ()) -> Profile:
        """The memory of an update in passes of `size` samples, two of them where there are more."""
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
        """The most bytes alive in such an update."""
        return self.profile(size, accumulation, paths).peak_bytes

    def work(self, size: int, passes: int = 1, paths: tuple[str, ...] = ()) -> float:
        """The work of such an update, in the units of `Moment.work`; 0 where it is not known."""
        profile = self.profile(size, passes, paths)
        update = sum(moment.work for moment in profile.moments if moment.phase == UPDATE)
        return (sum(moment.work for moment in profile.moments) - update) * passes / min(passes, 2) + update

    def time(self, size: int, passes: int, paths: tuple[str, ...]) -> float | None:
        """Predicted time of such an update beside the whole batch without checkpoints in the training asked for."""
        whole = self.work(self.wanted)
        return None if self.pace is None or not whole else self.pace * self.work(size, passes, paths) / whole

    @cached_property
    def least(self) -> int:
        """The fewest samples that can be trained on: two where one is refused, as by a batch norm of vectors."""
        try:
            self.profile(1, 2)  # in several passes, which is what small sizes are asked for
        except Exception as refused:
            try:
                self.profile(2, 2)
            except Exception:
                raise refused from None
            return 2
        return 1

    def largest(self, limit_bytes: int) -> int:
        """The most samples of one pass within the limit, whatever an update sees; 0 when not even `least` are."""
        most = MOST if self.profile(self.wanted).predicted else self.wanted  # what must really run is not tried larger
        return largest_batch(self.peak, limit_bytes, guess=self.wanted, least=self.least, most=most)

    def fewest_passes(self, limit_bytes: int, paths: tuple[str, ...] = ()) -> int:
        """In how few equal passes the samples of an update keep within the limit; 0 when not even `least` samples a pass do."""
        if self.wanted < self.least:
            return 0
        size = largest_batch(
            lambda size: self.peak(equal(self.wanted, size), 2, paths),
            limit_bytes,
            guess=max(1, self.wanted // 2),
            least=self.least,
            most=self.wanted,
        )
        return -(-self.wanted // size) if size else 0

    def seconds(self, few: int) -> float:
        """The median time of a training step of a copy of the model, really run on a few samples."""
        model, step = copied(self.model).train(), Pass(self.loss, self.optimizer, self.precision)
        batch, times = resized(self.batch, few), []
        with torch.random.fork_rng():
            optimizer = step.make_optimizer(model)
            for _ in range(ROUNDS):
                start = time.perf_counter()
                step.run(model, batch, optimizer)
                times.append(time.perf_counter() - start)
        return median(times[1:])


def equal(samples: int, size: int) -> int:
    """The size of equal passes, as many as those of `size` samples would be.

    >>> [equal(32, size) for size in (32, 16, 15, 11, 10, 1)]
    [32, 16, 11, 11, 8, 1]
    """
    passes = -(-samples // size)
    return -(-samples // passes)


def measured_pace(asked: Training, other: Training, few: int) -> float | None:
    """The time of a step beside the one asked for, on a few samples; None when it cannot be run here."""
    if asked.device is not None or not few:
        return None
    try:
        return other.seconds(few) / asked.seconds(few)
    except Exception as error:
        logger.info("%s is left out, it does not run: %s", other.precision, " ".join(str(error).split()))
        return None


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
