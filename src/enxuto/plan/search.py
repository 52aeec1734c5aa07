"""The search: whole recipes, from gentle to harsh, each run, saved, reloaded and judged on validation data.

The recipes are plain lists of steps, so what the search found is what anybody can run again; runs that begin alike share
their checkpoints. Weights are pruned level by level with training between (Han et al. 2015; Zhu, Gupta 2017, "To prune or
not to prune"), and every level is finished into a file: fold, share, train the codebooks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.artifact.save import load, save
from enxuto.errors import ArtifactError, Error, GradientError, NothingChangedError, RangeError, TargetError, TaskError
from enxuto.evaluation.points import is_fraction, said
from enxuto.evaluation.quality import paired_change
from enxuto.judging import quality
from enxuto.plan.chance import MARGIN, standard_error
from enxuto.plan.choice import rank
from enxuto.plan.fitting import CODINGS, Fitting
from enxuto.plan.history import End, History, Trial, in_words, search_key
from enxuto.plan.levels import FINISH_RATE, LEVEL, SPARSEST, first_density, level, trained
from enxuto.plan.pace import seconds_per_epoch, seconds_seen
from enxuto.plan.rated import rated
from enxuto.plan.speed import channels_for_latency
from enxuto.plan.untrained import Recipe, Tries, Wish, folded_or_not, untrained
from enxuto.progress import interrupting, unheard
from enxuto.recipe import run
from enxuto.sites import sites
from enxuto.sizes import format_bytes
from enxuto.steps.channels import PruneChannels
from enxuto.steps.fold import Fold
from enxuto.steps.prune import Prune
from enxuto.steps.share import Share
from enxuto.task import Evaluate, Step, Target, Task

logger = logging.getLogger(__name__)

PASSES = 4  # trainings that must find a place in the time for the shortest of them to be worth it
WORTH = 1.5  # times as long as before, at least, a further round must train
LONGER = 3  # times the training of each level, when all levels were tried and time is left
EPOCHS = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of training at each level; the largest that the time allows


class TimeOver(Exception):
    """The time is over in the middle of a trial, and no result can be waited for: raised and caught in here."""


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
    given_up: list[Trial] = field(default_factory=list)
    best: int = -1
    last: bool | None = None  # whether the last recipe lost little enough; None when it could not be applied
    end: End | None = None  # why the search ended
    start: float = field(default_factory=time.monotonic)
    pace_s: float | None = None  # seconds that an epoch took last
    too_long_s: float | None = None  # what an epoch takes, where even the shortest training found no place in the time
    hurried: bool = False  # whether a longer training found none
    asked: int = 0  # how many lengths of training were asked for

    def __post_init__(self) -> None:
        self.checkpoints = FolderCheckpoints(self.folder)
        digest = self.checkpoints.digest(self.task)  # before anything is called that may remember it
        began = time.monotonic()
        self.before = quality(self.evaluate, self.task.model)
        self._check_goal()
        self.evaluation_s = time.monotonic() - began
        key = search_key(digest, self.target, self.seconds, self.before)
        self.history = History(self.folder / "search.json", key)
        self.start -= self.history.seconds
        self.density = _density(self.task)
        self.fold = fold(self.task)
        if self.history.base is None:
            self.history.base = self._base()
            self.history.keep()
        self.base = self.history.base

    @property
    def over(self) -> bool:
        """True when there is a result, or recipes were given up, and no time to judge another one."""
        return (self.best >= 0 or bool(self.given_up)) and self.left_s <= self.evaluation_s

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
        recipes = self._recipes()
        try:
            trial = None
            while (recipe := next_of(recipes, trial)) is not None:
                if not self.history.answers(in_words(recipe)):
                    self._check_time()
                trial = self.attempt(recipe)
                if self.best >= 0 and self._enough(self.trials[self.best]):
                    self.end = End("goal", self.seconds)
                    return
            short = self.hurried or self.too_long_s is not None
            self.end = End("time" if short else "merit", self.seconds, self.too_long_s, self.hurried)
        except TimeOver:
            self.end = End("time", self.seconds)
        except KeyboardInterrupt:
            self.end = End("interrupt", self.seconds)
            if self.best < 0:
                raise

    def attempt(self, recipe: tuple[Step, ...]) -> Trial | None:
        """Runs, saves, reloads and judges one recipe, unless an earlier run did; None when it gave no file to judge."""
        words = in_words(recipe)
        if not self.history.answers(words):
            self.history.remember(words, self._tried(recipe, words))
        trial = self.history.known.get(words)
        if trial is None:
            logger.info("not tried: %s", self.history.refused[words])
            self.last = None
            return None
        if trial.given_up:
            logger.warning("given up: %s: %s", words, trial.why)
            self.given_up.append(trial)
            self.last = None
            return None
        trial = replace(trial, kept=self.best < 0 or self._rank(trial) < self._rank(self.trials[self.best]))
        logger.info("%s %s: %s", "kept" if trial.kept else "tried", trial.why, words)
        self.recipes.append(recipe)
        self.trials.append(trial)
        if trial.kept:
            self.best = len(self.trials) - 1
        self.last = trial.drop <= self.target.drop
        return trial

    def _tried(self, recipe: tuple[Step, ...], words: str) -> Trial | str:
        """What a recipe costs and gives, before it is compared with others; or why it could not be applied.

        Raises: TimeOver when the time ends before, and there is a result already or no hope of one.
        """
        try:
            with interrupting(self._check_time), unheard("enxuto.steps"):  # each trial is judged
                model, records = run(self.task, recipe, checkpoints=self.checkpoints, strict=True)
            self.pace_s = seconds_seen(self.task, recipe, records) or self.pace_s
            began = time.monotonic()
            path = self.folder / "trial.nxt"
            save(model, path, original=self.task.model)
            size = path.stat().st_size
            small = load(path, into=self.task.model)
        except (NothingChangedError, RangeError, GradientError) as fault:  # nothing to do, less asked than there is, no gradients
            return str(fault)
        except (TaskError, ArtifactError) as fault:  # a training that diverged, a file that does not fit the network
            if self.best < 0 and isinstance(fault, TaskError):  # what is wrong with the data shows in the first recipes
                raise
            return Trial(time.monotonic() - self.start, words, 0, math.nan, False, str(fault), math.inf)
        after = quality(self.evaluate, small)
        self.evaluation_s = time.monotonic() - began
        change, _, _ = paired_change(self.before, after)
        error = standard_error(self.before, after)
        drop = round(-change + (MARGIN * error if self.target.drop < math.inf else 0.0), 9)  # 0.8 - 0.7 is more than 0.1
        why = f"{format_bytes(size)}, {said(change, is_fraction(float(self.before.mean()), float(after.mean())))}"
        return Trial(time.monotonic() - self.start, words, size, float(after.mean()), False, why, drop, error)

    def _check_time(self) -> None:
        if self.over:
            raise TimeOver

    def _rank(self, trial: Trial) -> tuple[float, float, float]:
        return rank(trial.drop, trial.file_bytes, allowed=self.target.drop, limit=self.limit_bytes)

    def _enough(self, trial: Trial) -> bool:
        """True when all was asked for and the trial keeps it: nothing better is to be had."""
        return self.limit_bytes < math.inf and self.target.drop < math.inf and self._rank(trial)[:2] == (0, 0)

    def _check_goal(self) -> None:
        """Raises RangeError when the drop that is allowed is all that the original has, or more."""
        original, drop = float(self.before.mean()), self.target.drop
        if 0 <= original <= drop < math.inf and drop:
            meant = drop if is_fraction(original, original) and 1 <= drop < 100 else 0.5
            raise RangeError(
                f"max_drop={drop:g} is the whole quality of the original, {original:.4g}, or more: any network would do; it is "
                f"absolute, so for {meant:g} of 100 points write {meant / 100:g} or '{meant:g}%'."
            )

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
        self.too_long_s = self._too_long(bool(fitting))
        return fitting[-1] if fitting else 0.0

    def _too_long(self, found: bool) -> float | None:
        """What an epoch takes, where no training found a place in the time; None where one did, or nothing can be trained."""
        return None if found or self.epoch_s == math.inf else self.epoch_s

    @property
    def epoch_s(self) -> float:
        """Seconds that one epoch of training takes: as the last one went, or as a few batches say; infinite where none can be."""
        if self.pace_s is None:
            try:
                with interrupting(self._check_time):
                    self.pace_s = seconds_per_epoch(self.task)
            except GradientError as fault:
                logger.info("nothing is trained: %s", fault)
                self.pace_s = math.inf
        return self.pace_s

    def _first_epochs(self, passes: float) -> float:
        """How long each of so many trainings takes at first: a twentieth of the time, less if they are many, more if it must."""
        epochs = self._epochs(1 / max(20, 3 * passes))
        if not epochs and self.epoch_s < math.inf:
            self.pace_s = None  # the first look may have met a busy moment
            epochs = self._epochs(1 / (passes + 1))
        return epochs

    def _longer(self, passes: float, before: float) -> float:
        """Epochs of each training of the next round, LONGER times `before` or what the time holds; 0 when that is too little."""
        if not before:
            epochs = self._decided(lambda: self._first_epochs(passes))
            self.too_long_s = self._too_long(bool(epochs))
            return epochs

        def choose() -> float:
            most = self.left_s / ((passes + 1) * self.epoch_s)
            return round(min(LONGER * before, most), 3) if most >= WORTH * before else 0.0

        epochs = self._decided(choose)
        self.hurried = not epochs
        return epochs

    def _decided(self, choose: Callable[[], float]) -> float:
        """What the clock says, once in the whole search: when it starts again it goes the way it went."""
        if self.asked == len(self.history.decided):
            self.history.decided.append(choose())
            self.history.keep()
        self.asked += 1
        return self.history.decided[self.asked - 1]

    def _finish(self, bits: int, epochs: float) -> tuple[Step, ...]:
        return (*self.fold, Share(bits=bits, biases=8), *trained(epochs, FINISH_RATE))

    def _recipes(self) -> Tries:
        if self.limit_bytes < math.inf and self.target.drop == math.inf:
            yield from Fitting(self.base, self.fold, self.density, self.limit_bytes, self._longer).recipes()
            return
        if self.free:
            yield self.base + self._finish(8, 0)
            return
        self.fold = yield from self._untrained()
        for coding in CODINGS[:2]:  # nothing trained: seconds, and something is in hand
            for step in coding:
                yield (*self.base, *self.fold, step)
                if not self.last:
                    break
        epochs = self._longer(PASSES, 0.0)
        worth = yield from rated((*self.base, *self.fold), epochs, self._small())
        tail = max(EPOCHS[0], round(epochs / 2, 3)) if epochs else 0.0
        if tail:
            yield self.base + self._finish(4, tail)
        yield from self._ladder(epochs, tail)
        while 0 < epochs < EPOCHS[-1]:  # the goal was missed or more is to be had, and time is left: train what is best longer
            epochs = min(LONGER * epochs, EPOCHS[-1])
            if self._best_is_rated:
                worth = (yield from rated((*self.base, *self.fold), epochs, self._small(), worth)) or worth
            else:
                yield from self._ladder(epochs, max(EPOCHS[0], round(epochs / 2, 3)))

    @property
    def _best_is_rated(self) -> bool:
        return self.best >= 0 and any(getattr(step, "rate", None) for step in self.recipes[self.best])

    def _untrained(self) -> Generator[Recipe, Trial | None, Recipe]:
        """Thin layers and the coarsest tolerance that loses little enough, nothing trained; and whether folding pays."""
        prefix = yield from untrained(folded_or_not(self.base, self.fold), self._small())
        return prefix[len(self.base) :]

    def _small(self) -> Wish:
        """As few bytes as lose little enough."""

        def does(trial: Trial) -> bool:
            return trial.drop <= self.target.drop

        return Wish(does, coarser=does, cost=lambda trial: trial.file_bytes, enough=lambda trial: False)

    def _ladder(self, epochs: float, tail: float) -> Tries:
        """Level by level fewer weights, each level trained from the one before, until the goal or too much is lost."""
        good, passed, density = self.base, self.density, first_density(self.density)
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
        if not self.recipes:
            return 0.0  # nothing is known yet
        steps = [step for step in self.recipes[-1] if isinstance(step, Prune)]
        last = 1 - steps[-1].sparsity if steps else self.density
        return self.trials[-1].file_bytes * density / last

    def _between(self, good: tuple[Step, ...], passed: float, failed: float, epochs: float, tail: float) -> Tries:
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


def next_of(recipes: Tries, trial: Trial | None) -> tuple[Step, ...] | None:
    """The recipe that a family wants tried next, told what became of the last; None when it wants none."""
    try:
        return recipes.send(trial)
    except StopIteration:
        return None


def _density(task: Task) -> float:
    """The fraction of the weights that are not zero; 1 when no weight can be pruned."""
    values = [weight.read() for weight in sites(task.model)]
    total = max(1, sum(value.numel() for value in values))
    return max(1, sum(int(value.count_nonzero()) for value in values)) / total


def fold(task: Task) -> tuple[Step, ...]:
    """Fold where there is something to fold: not in networks without batch norm, or with norms before their layers."""
    try:
        Fold()(task.model, task)
    except (NothingChangedError, GradientError):
        return ()
    return (Fold(),)


def smallest_file(task: Task, folder: Path) -> Path:
    """A file of this network with next to nothing in it: no recipe of this search goes below."""
    model: nn.Module = task.model
    for step in (Fold(), Prune(sparsity=0.9999, scores="magnitude"), Share(bits=2, biases=1)):
        try:
            model, _ = step(model, task)
        except (NothingChangedError, GradientError):
            continue
        except Error as error:
            raise TargetError(f"the network cannot be compressed: {error}") from error
    path = folder / "smallest.nxt"
    save(model, path, original=task.model)
    return path
