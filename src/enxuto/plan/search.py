"""The search: whole recipes, from gentle to harsh, each run, saved, reloaded and judged on validation data.

The recipes are plain lists of steps, so what the search found is what anybody can run again; runs that begin alike share
their checkpoints. Weights are pruned level by level with training between (Han et al. 2015; Zhu, Gupta 2017, "To prune or
not to prune"), and every level is finished into a file: fold, share, train the codebooks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.artifact.save import load, save
from enxuto.errors import Error, LayerError, NothingChangedError, TargetError, TaskError
from enxuto.evaluation.quality import paired_change, quality
from enxuto.plan.history import History, Trial, in_words, search_key
from enxuto.plan.speed import channels_for_latency
from enxuto.progress import interrupting
from enxuto.recipe import run
from enxuto.sizes import format_bytes
from enxuto.steps.channels import PruneChannels
from enxuto.steps.fold import Fold
from enxuto.steps.prune import Prune
from enxuto.steps.recover import Recover
from enxuto.steps.share import Share
from enxuto.surgery import weights
from enxuto.task import Evaluate, Step, Target, Task, count

logger = logging.getLogger(__name__)

DENSER, LEVEL = 0.5, 0.6  # fraction of weights left after the first level, and what each further level leaves of it
SPARSEST = 0.004
LEVEL_RATE = 2e-3  # LeNet-300-100 at 97 % zeros lost 0.6 points on validation, and 1.3 at 1e-3 (3 epochs a level)
FINISH_RATE = 3e-4
CONFIDENCE = 1.96  # standard errors that a drop must stay below its limit
LONGER = 3  # times the training of each level, when all levels were tried and time is left
SLOW_S = 5.0  # a first batch that takes longer says enough of how long an epoch takes
EPOCHS = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of training at each level; the largest that the time allows


class TimeOver(Exception):
    """The time is over in the middle of a trial, and there is a result already: raised and caught in here."""


@dataclass
class Search:
    """One search and its best so far. `best` is the index of a trial in `trials`; -1 before the first."""

    task: Task
    target: Target
    seconds: float
    folder: Path
    evaluate: Evaluate
    limit_bytes: float
    trials: list[Trial] = field(default_factory=list)
    recipes: list[tuple[Step, ...]] = field(default_factory=list)
    best: int = -1
    last: bool | None = None  # whether the last recipe lost little enough; None when it could not be applied
    stopped: str = ""  # why the search ended
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.checkpoints = FolderCheckpoints(self.folder)
        digest = self.checkpoints.digest(self.task)  # before anything is called that may remember it
        began = time.monotonic()
        self.before = quality(self.evaluate, self.task.model)
        self.evaluation_s = time.monotonic() - began
        key = search_key(digest, self.target, self.seconds, self.before)
        self.history = History(self.folder / "search.json", key)
        self.start -= self.history.seconds
        self.density = _density(self.task)
        self.fold = _fold(self.task)
        if self.history.base is None:
            self.history.base = self._base()
            self.history.keep()
        self.base = self.history.base

    @property
    def drops(self) -> list[float]:
        """What each trial lost, with what chance may add."""
        return [trial.drop for trial in self.trials]

    @property
    def over(self) -> bool:
        """True when there is a result and no time to judge another one."""
        return self.best >= 0 and self.left_s <= self.evaluation_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget that remain."""
        return self.seconds - (time.monotonic() - self.start)

    @property
    def free(self) -> bool:
        """True when nothing asks for a smaller file: MACs or latency alone."""
        return self.limit_bytes == math.inf and self.target.drop == math.inf

    def run(self) -> None:
        """Tries recipes until the goal is met and nothing better is to be had, or the time is over."""
        try:
            for recipe in self._recipes():
                if in_words(recipe) not in self.history.known:
                    self._check_time()
                self.attempt(recipe)
                if self.best >= 0 and self._enough(self.best):
                    self.stopped = "the goal is met"
                    return
            self.stopped = "nothing further was worth trying"
        except TimeOver:
            self.stopped = f"the time of {self.seconds:.0f} s was over"
        except KeyboardInterrupt:
            self.stopped = "it was interrupted"
            if self.best < 0:
                raise

    def attempt(self, recipe: tuple[Step, ...]) -> bool:
        """Runs, saves, reloads and judges one recipe, unless an earlier run did; True when it loses no more than allowed."""
        words = in_words(recipe)
        trial = self.history.known.get(words)
        if trial is None:
            trial = self._tried(recipe, words)
            if trial is None:
                self.last = None
                return False
            self.history.known[words] = trial
            self.history.keep()
        self.recipes.append(recipe)
        self.trials.append(trial)
        if trial.kept:
            self.best = len(self.trials) - 1
        self.last = trial.drop <= self.target.drop
        return self.last

    def _tried(self, recipe: tuple[Step, ...], words: str) -> Trial | None:
        """What a recipe costs and gives; None when it could not be applied.

        Raises: TimeOver when the time ends before, and there is a result already.
        """
        try:
            with interrupting(self._check_time):
                model, _ = run(self.task, recipe, checkpoints=self.checkpoints, strict=True)
        except NothingChangedError as error:
            logger.info("not tried: %s", error)
            return None
        except TaskError as error:  # a training that diverged; what is wrong with the data was found before the first recipe
            if self.best < 0:
                raise
            logger.warning("a recipe was given up (%s): %s", words, error)
            return None
        path = self.folder / "trial.nxt"
        save(model, path, original=self.task.model)
        size = path.stat().st_size
        after = quality(self.evaluate, load(path, into=self.task.model))
        change, _, _ = paired_change(self.before, after)
        drop = -change + margin(self.before, after, self.target.drop)
        kept = self.best < 0 or self._distance(drop, size) < self.rank(self.best)
        why = f"{format_bytes(size)}, quality {change:+.4f}"
        logger.info("%s %s: %s", "kept" if kept else "tried", why, words)
        return Trial(time.monotonic() - self.start, words, size, float(after.mean()), kept, why, drop)

    def _check_time(self) -> None:
        if self.over:
            raise TimeOver

    def rank(self, index: int) -> tuple[float, float]:
        """Smaller is better: first how far from the goal, then bytes (or the drop, where bytes are bounded)."""
        return self._distance(self.trials[index].drop, self.trials[index].file_bytes)

    def _distance(self, drop: float, size: int) -> tuple[float, float]:
        over = max(0.0, math.log(size / self.limit_bytes)) if self.limit_bytes < math.inf else 0.0
        if self.target.drop < math.inf:
            over += max(0.0, drop - self.target.drop) / max(self.target.drop, 0.005)
        return (over, drop if self.limit_bytes < math.inf else float(size))

    def _enough(self, index: int) -> bool:
        bounded = self.limit_bytes < math.inf
        return bounded and self.target.drop < math.inf and self.rank(index)[0] == 0

    def _base(self) -> tuple[Step, ...]:
        cuts: tuple[Step, ...] = ()
        if self.target.macs is not None:
            cuts = (PruneChannels(macs=self.target.macs),)
        if self.target.latency is not None:
            cuts = channels_for_latency(self.task, self.target.latency, self.folder, macs=self.target.macs)
        return cuts + trained(self._epochs(share=0.7 if self.free else 0.3)) if cuts else ()

    def _epochs(self, share: float) -> float:
        """The longest training in EPOCHS that takes no more than this share of the time that is left; 0 when none does."""
        fitting = [epochs for epochs in EPOCHS if epochs * self.epoch_s <= share * self.left_s]
        return fitting[-1] if fitting else 0.0

    @cached_property
    def epoch_s(self) -> float:
        """Seconds that one epoch of training takes."""
        return seconds_per_epoch(self.task)

    def _level_epochs(self) -> float:
        """How long each level trains, decided once in the whole search."""
        if self.history.epochs is None:
            self.history.epochs = self._epochs(share=1 / 20)
            self.history.keep()
        return self.history.epochs

    def _finish(self, bits: int, epochs: float) -> tuple[Step, ...]:
        return (*self.fold, Share(bits=bits, biases=8), *trained(epochs, FINISH_RATE))

    def _recipes(self) -> Iterator[tuple[Step, ...]]:
        for bits in (8,) if self.free else (8, 6, 5, 4):  # nothing trained: seconds, and something is in hand
            yield self.base + self._finish(bits, 0)
            if not self.last:
                break
        if self.free:
            return
        epochs = self._level_epochs()
        tail = max(EPOCHS[0], round(epochs / 2, 3)) if epochs else 0.0
        if tail:
            yield self.base + self._finish(4, tail)
        yield from self._ladder(epochs, tail)
        while 0 < epochs < EPOCHS[-1]:  # the goal was missed or more is to be had, and time is left: train longer
            epochs = min(LONGER * epochs, EPOCHS[-1])
            yield from self._ladder(epochs, max(EPOCHS[0], round(epochs / 2, 3)))

    def _ladder(self, epochs: float, tail: float) -> Iterator[tuple[Step, ...]]:
        """Level by level fewer weights, each level trained from the one before, until the goal or too much is lost."""
        good, passed, density = self.base, self.density, DENSER
        while density >= 0.95 * self.density:  # levels that the network had before
            density *= LEVEL
        prefix = self.base
        while density > SPARSEST:
            prefix = (*prefix, *level(density, epochs))
            if self._bytes_at(density) < 1.3 * self.limit_bytes:
                yield prefix + self._finish(4, tail)
                if not self.last:
                    break
                good, passed = prefix, density
                if self.trials[-1].file_bytes <= self.limit_bytes < math.inf:
                    break  # it fits: sparser only loses more
            density *= LEVEL
        yield from self._between(good, passed, density, epochs, tail)

    def _bytes_at(self, density: float) -> float:
        """The file to expect at a density, from the last trial: bytes fall about as the weights that are left."""
        steps = [step for step in self.recipes[-1] if isinstance(step, Prune)]
        last = 1 - steps[-1].sparsity if steps else self.density
        return self.trials[-1].file_bytes * density / last

    def _between(
        self, good: tuple[Step, ...], passed: float, failed: float, epochs: float, tail: float
    ) -> Iterator[tuple[Step, ...]]:
        """From the last level that lost little enough towards the first that did not, with longer training."""
        bits = 4
        if tail and self.limit_bytes == math.inf:
            yield good + self._finish(3, 2 * tail)  # eight values instead of sixteen often lose nothing more
            bits = 3 if self.last else 4
        while passed / failed > 1.08 and self.limit_bytes == math.inf:
            density = math.sqrt(passed * failed)
            between = (*good, *level(density, 2 * epochs))
            yield between + self._finish(bits, round(2 * tail, 3))
            if self.last:
                good, passed = between, density
            else:
                failed = density
        if tail:
            yield good + self._finish(3, round(3 * tail, 3))
            yield good + self._finish(4, round(4 * tail, 3))


def level(density: float, epochs: float) -> tuple[Step, ...]:
    """Fewer weights, and training to do without those that went, where there is time for it."""
    return (Prune(round(1 - density, 4)), *trained(epochs, LEVEL_RATE))


def trained(epochs: float, rate: float = Recover.learning_rate) -> tuple[Step, ...]:
    """Training, or nothing where there is no time for any."""
    return (Recover(epochs=epochs, learning_rate=rate),) if epochs else ()


def _density(task: Task) -> float:
    """The fraction of the weights that are not zero; 1 when no weight can be pruned."""
    try:
        values = [weight.read() for weight in weights(task.model)]
    except LayerError:
        return 1.0
    total = sum(value.numel() for value in values)
    return max(1, sum(int(value.count_nonzero()) for value in values)) / total


def _fold(task: Task) -> tuple[Step, ...]:
    """Fold where there is something to fold: not in networks without batch norm, or with norms before their layers."""
    try:
        Fold()(task.model, task)
    except NothingChangedError:
        return ()
    return (Fold(),)


def margin(before: Tensor, after: Tensor, allowed: float) -> float:
    """What chance may add to a drop measured on few samples: CONFIDENCE standard errors, at most 1.5 times what is allowed.

    Choosing the best of many recipes flatters it: with 0.84 and 1.64 standard errors, at most what is allowed,
    LeNet-300-100 lost 0.8 and 0.6 points on the test where 0.5 were allowed on 5,000 validation samples.
    """
    if before.ndim == 0 or before.numel() < 2 or allowed == math.inf:
        return 0.0
    error = float((after - before).double().std() / math.sqrt(before.numel()))
    return min(CONFIDENCE * error, 1.5 * allowed)


def seconds_per_epoch(task: Task) -> float:
    """How long one epoch of `Recover` takes, from a few batches of it."""
    source = task.train if task.train is not None else task.calibration
    length = count(source) or sum(1 for _ in source)
    _, record = Recover(epochs=1 / length)(task.model, task)
    if record.seconds < SLOW_S:  # the first batches take longer than those that follow
        _, record = Recover(epochs=6 / length)(task.model, task)
    return record.seconds / record.figures["batches"] * length


def smallest_bytes(task: Task, folder: Path) -> int:
    """The size of a file of this network with next to nothing in it: no recipe of this search goes below."""
    model: nn.Module = task.model
    for step in (Fold(), Prune(sparsity=0.9999, scores="magnitude"), Share(bits=2, biases=1)):
        try:
            model, _ = step(model, task)
        except NothingChangedError:
            continue
        except Error as error:
            raise TargetError(f"the network cannot be compressed: {error}") from error
    path = folder / "smallest.nxt"
    save(model, path, original=task.model)
    return path.stat().st_size
