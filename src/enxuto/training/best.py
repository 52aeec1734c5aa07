"""The best state of a training so far, by what the task's `evaluate` says of it as it would ship, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from enxuto import world
from enxuto.judging import quality
from enxuto.surgery import duplicate
from enxuto.task import Evaluate
from enxuto.training.rehearsals import settle_
from enxuto.training.snapshot import Snapshot

logger = logging.getLogger(__name__)
LOOKS = 20  # for a state to fall back to, in a training that nobody judges
LOUD = 2.0  # times the first loss: with more the training has gone wrong already


@dataclass
class Best:
    """The state of the best score so far, after `at` updates; `since` looks have found none better."""

    snapshot: Snapshot | None = None
    score: float = -math.inf
    at: int = 0
    since: int = 0
    looks: int = 0

    def state(self) -> dict[str, Any]:
        """All of it, as plain data and tensors."""
        return {**vars(self), "snapshot": None if self.snapshot is None else vars(self.snapshot)}

    def resume_(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        vars(self).update(state, snapshot=None if state["snapshot"] is None else Snapshot(**state["snapshot"]))

    def look_(self, student: nn.Module, score: float, at: int) -> None:
        """Keeps the student as it is now if its score is the best."""
        self.looks += 1
        self.since += 1
        if score > self.score:
            self.snapshot, self.score, self.at, self.since = Snapshot.of(student), score, at, 0


@dataclass
class Looks:
    """Judges a student by `evaluate` every so many updates from `ready` on, and after the last of `total`."""

    student: nn.Module
    evaluate: Evaluate
    every: int
    ready: int
    total: int
    patience: int | None = None
    best: Best = field(default_factory=Best)
    last: float = math.nan  # the quality that was found last

    @property
    def tired(self) -> bool:
        """True when as many looks as there is patience for found nothing better."""
        return self.patience is not None and self.best.since >= self.patience

    def due(self, done: int) -> bool:
        """True when it is time for a look, after so many updates."""
        return done >= self.ready and (done % self.every == 0 or done == self.total)

    def look_(self, done: int) -> None:
        """One look. Raises: TaskError where evaluate fails."""
        self.last = world.first(lambda: judged(self.student, self.evaluate))
        self.best.look_(self.student, self.last, done)
        logger.info("quality %.4g after %d of %d updates", self.last, done, self.total)


@dataclass
class Fallback:
    """A state to go back to should the loss become infinite, of a student that nobody judges: where the losses were least.

    None is kept whose loss is far above the first, and none that was not trained.
    """

    student: nn.Module
    every: int
    ready: int
    best: Best = field(default_factory=Best)
    heard: int = 0  # losses that were looked at

    def due(self, done: int) -> bool:
        """True when it is time to look, after so many updates and before the next."""
        return done >= self.ready and done % self.every == 0

    def hear_(self, done: int, losses: Sequence[float]) -> None:
        """Looks at all losses so far, of which the last is that of the student as it is now."""
        new = losses[self.heard :]
        self.heard = len(losses)
        if losses[-1] <= LOUD * losses[0]:
            self.best.look_(self.student, -sum(new) / len(new), done)


def judged(student: nn.Module, evaluate: Evaluate) -> float:
    """The quality of a student as it would ship now; it goes on as if nobody had looked. Raises: TaskError as `quality`."""
    with torch.random.fork_rng():
        return float(quality(evaluate, settle_(duplicate(student)).eval()).mean())
