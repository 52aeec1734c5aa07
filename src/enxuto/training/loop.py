"""The loop: batch after batch, update after update, and whatever is averaged, tightened or looked at meanwhile."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from enxuto import world
from enxuto.batches import parts, samples
from enxuto.calls import attempt, device_of, differentiating
from enxuto.errors import TaskError
from enxuto.progress import counted
from enxuto.records import Change
from enxuto.sizes import format_bytes
from enxuto.training.average import Average
from enxuto.training.best import LOOKS, Fallback, Looks
from enxuto.training.examples import Example, Examples
from enxuto.training.objective import Objective
from enxuto.training.optimizers import Options, made
from enxuto.training.schedules import SCHEDULES
from enxuto.training.shares import Shares
from enxuto.training.snapshot import Snapshot
from enxuto.training.state import State, recall_, remembered

logger = logging.getLogger(__name__)
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LONGEST = 5.0  # norm of all gradients, beyond which they are clipped
TOLD = 100  # times that a training says how it stands

Look = Callable[[torch.optim.Optimizer], None]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How one trains: `run` does it. `ready` is the part of the training from which on its states are what is wanted."""

    learning_rate: float
    weight_decay: float = 0.0
    devices: int = 1
    precision: Precision = "32-true"
    size: int | None = None  # samples of a pass; an update sees the whole batch
    seed: int = 0
    optimizer: str = "AdamW"
    options: Options | None = None
    schedule: str = "cosine"
    clip: float | None = LONGEST
    accumulate: int = 1  # batches of an update
    average: float = 0.0
    patience: int | None = None
    keep: Literal["last", "best"] = "last"
    every: float = 1.0  # epochs between looks
    rescue: bool = True  # a copy is kept to fall back to
    place: Path | None = None  # the file of its state while it is under way

    def updates(self, batches: int) -> int:
        """How many updates so many batches make; the last may have fewer than the others."""
        return -(-batches // self.accumulate)

    def run(
        self,
        student: nn.Module,
        objective: Objective,
        examples: Examples,
        after: Sequence[Callable[[], None]] = (),
        before: Sequence[Look] = (),
        beside: Sequence[object] = (),
        ready: float = 0.0,
    ) -> Run:
        """Trains the student in place; `before` an update its gradients are there, clipped, and `after` it the weights are new.

        What is `beside` it remembers something from update to update, which goes into the state as well.
        Raises: TaskError when a batch does not fit, the source is empty, or the loss or a weight becomes infinite before there is
        a state to fall back to.
        """
        shares = Shares(self.devices)
        fabric = _fabric(self.precision, shares)
        world.agree_(student, "the network")
        home = device_of(objective.task.model)
        wrapped, optimizer = fabric.setup(student, self._optimizer([student, *objective.modules]))
        if objective.teacher is not None:
            objective.teacher.module = fabric.to_device(objective.teacher.module)
        for term in objective.modules:
            fabric.to_device(term)
        run = Run(self, student, objective, examples, shares, fabric, wrapped, optimizer, ready)
        with torch.random.fork_rng(), shares.norms(student) as lone:
            torch.manual_seed(self.seed)
            wrapped.train()
            optimizer.zero_grad(set_to_none=True)
            state = State(None if shares.rank else self.place)
            run.resume_(state, beside)
            for batch in world.steady(counted(examples, run.standing, examples.total), self.seed):
                run.learn_(batch)
                run.alone += bool(lone)
                lone.clear()
                if run.diverged:
                    break
                if run.waits:
                    continue
                run.update_(before)
                for then in after:
                    then()
                if run.look_():
                    break
                if state.due():
                    state.write_(run.state(beside))
        run.end_()
        state.end_()
        student.to(home)
        return run

    def _optimizer(self, modules: Sequence[nn.Module]) -> torch.optim.Optimizer:
        """In one pass over the weights where it can be: gradients that a scaler made larger are clipped before it."""
        return made(
            self.optimizer,
            self.options,
            [each for module in modules for each in module.parameters()],
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=self.precision != "16-mixed",
        )


@dataclass
class Run:
    """A training under way: `losses` has the loss of each batch, `alone` the batches of single values for a batch norm.

    When it is over, `changes` and `notes` say what of it a record should.
    """

    loop: Loop
    student: nn.Module
    objective: Objective
    examples: Examples
    shares: Shares
    fabric: Any
    wrapped: Any
    optimizer: Any
    ready: float
    losses: list[float] = field(default_factory=list)
    alone: int = 0
    done: int = 0  # updates
    before_s: float = 0.0  # in earlier processes
    changes: tuple[Change, ...] = ()
    notes: tuple[Change, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loop, examples = self.loop, self.examples
        self.gathered = Gathered(self.optimizer)
        self.average = Average(self.student, loop.average) if loop.average else None
        self.total = loop.updates(examples.total)
        ready = max(1, round(self.ready * self.total))
        evaluate = self.objective.task.evaluate
        self.looks: Looks | None = None
        self.fallback: Fallback | None = None
        if evaluate is not None and (loop.patience is not None or loop.keep == "best"):
            every = max(1, round(loop.every * examples.length / loop.accumulate))
            self.looks = Looks(self.student, evaluate, every, ready, self.total, loop.patience)
        elif loop.rescue:
            self.fallback = Fallback(self.student, max(1, self.total // LOOKS), ready)
        self.told = ""
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken, in all processes."""
        return self.before_s + time.monotonic() - self.start

    @property
    def diverged(self) -> bool:
        """True when the last loss is infinite or none at all."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    @property
    def waits(self) -> bool:
        """True while the update needs more batches."""
        return self.examples.done % self.loop.accumulate != 0 and self.examples.done < self.examples.total

    def state(self, beside: Sequence[object]) -> dict[str, Any]:
        """All that the rest of the training hangs on, between two updates."""
        kept = self.looks or self.fallback
        return {
            "losses": self.losses,
            "counts": {"alone": self.alone, "done": self.done, "told": self.told, "before_s": self.seconds},
            "student": vars(Snapshot.of(self.student, copy=False)),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric._precision.state_dict(),
            "objective": self.objective.state(),
            "average": None if self.average is None else self.average.state(),
            "kept": None if kept is None else (remembered(kept), kept.best.state()),
            "beside": [remembered(each) for each in beside],
            "examples": self.examples.state(),
        }

    def resume_(self, file: State, beside: Sequence[object]) -> None:
        """Goes on where an earlier process was killed, if there is a state.

        Raises: TaskError for a state of another training; its file is removed.
        """
        if self.objective.teacher is not None:
            self.objective.teacher.place = file.answers if self.shares.size == 1 else None  # each is asked for its own part
        state = world.same(file.read())
        if state is None:
            return
        try:
            self._resume_(state, beside)
        except (KeyError, ValueError, AttributeError, RuntimeError, TypeError, OSError) as error:
            file.end_()
            raise TaskError(
                f"the state of an unfinished training in '{file.path}' does not fit ({type(error).__name__}: {error}); it was "
                "removed: run it again."
            ) from error
        logger.info("going on after %d of %d updates", self.done, self.total)

    def _resume_(self, state: dict[str, Any], beside: Sequence[object]) -> None:
        vars(self).update(state["counts"], losses=state["losses"])
        Snapshot(**state["student"]).put_(self.student)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric._precision.load_state_dict(state["scaler"])
        self.objective.resume_(state["objective"])
        if self.average is not None:
            self.average.resume_(state["average"])
        kept = self.looks or self.fallback
        if kept is not None:
            recall_(kept, state["kept"][0])
            kept.best.resume_(state["kept"][1])
        for each, remembers in zip(beside, state["beside"], strict=True):
            recall_(each, remembers)
        self.examples.resume_(state["examples"])

    def learn_(self, batch: Example) -> None:
        """One batch forwards and backwards, in as many passes as it takes; of several processes each has its part."""
        weight = 1.0 if self.loop.accumulate == 1 else self.gathered.weight(samples(batch))
        batch, counts = self.shares.part(batch)
        weight *= counts
        told, place, objective, examples = 0.0, f"training batch {self.examples.done}", self.objective, self.examples
        for (inputs, targets), part in _passes(self.fabric.to_device(batch), self.loop.size):
            outputs = attempt(self.wrapped, inputs, place, objective.task.model)
            moment = objective.moment(self.wrapped, outputs, inputs, targets, (examples.done - 1) / examples.total)
            if examples.done == 1:
                objective.settle_(moment)
                objective.learned = world.same(objective.learned)
            loss = objective(moment) * part
            with differentiating(place):
                self.fabric.backward(loss if weight == 1 else loss * weight)
            told += float(loss.detach())
        self.losses.append(self.shares.loss(told * counts))

    def update_(self, before: Sequence[Look]) -> None:
        """One update of the weights."""
        if self.fallback is not None and self.fallback.due(self.done):
            with self._as_it_ends():
                self.fallback.hear_(self.done, self.losses)
        self.gathered.mean_()
        self.shares.mean_(itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups))
        for group in self.optimizer.param_groups:
            group["lr"] = self.loop.learning_rate * SCHEDULES[self.loop.schedule](self.done, self.total)
        if self.loop.clip is not None:
            self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.loop.clip, error_if_nonfinite=False)
        for look in before:
            look(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def look_(self) -> bool:
        """What is due after an update and all that followed it; True where there is no use in going on."""
        if self.average is not None:
            self.average.update_()
        if self.looks is None or not self.looks.due(self.done):
            return False
        with self._as_it_ends():
            self.looks.look_(self.done)
        return self.looks.tired

    def _as_it_ends(self) -> AbstractContextManager[None]:
        """Inside, the student is what would come out now."""
        return nullcontext() if self.average is None else self.average.within()

    def standing(self) -> str:
        """What the training is and how it stands, in a few words that stay the same for a while."""
        if not self.losses or self.examples.done % max(1, self.examples.total // TOLD):
            return self.told or "recovering"
        said = [f"recovering: loss {self.losses[-1]:.3g}"]
        if self.looks is not None and math.isfinite(self.looks.last):
            said.append(f"quality {self.looks.last:.4g}")
        said += [
            f"codes {format_bytes(round(term.coded_bytes))}" for term in self.objective.terms if hasattr(term, "coded_bytes")
        ]
        self.told = ", ".join(said)
        return self.told

    def end_(self) -> None:
        """The student becomes what the training was for: its last state, the average, or the best.

        Raises: TaskError when there is none.
        """
        if not self.losses:
            raise TaskError("train said that it holds batches, but gave none; give a list or a DataLoader.")
        if self.diverged or not all(bool(torch.isfinite(each).all()) for each in self.student.parameters()):
            self._back_()
        elif self.looks is not None and self.looks.best.snapshot is not None and self.loop.keep == "best":
            self.looks.best.snapshot.put_(self.student)
        elif self.average is not None:
            self.average.give_()
        if self.looks is not None and self.looks.best.snapshot is not None:
            best = self.looks.best
            stopped = f", and stopped after {self.done}: {best.since} looks found none better" if self.looks.tired else ""
            kept = f"quality {best.score:.4g}, {'kept' if self.loop.keep == 'best' else 'best'} of {best.looks} looks"
            self.figures = {"quality": best.score}
            self.changes = (Change("", f"best after {best.at} of {self.total} updates{stopped}", kept),)

    def _back_(self) -> None:
        """The best state so far takes the place of one that is lost. Raises: TaskError where there is none."""
        kept = self.looks or self.fallback
        what = f"training diverged: the loss became {self.losses[-1]} after {len(self.losses)} batches"
        remedy = f"use a lower learning_rate than {self.loop.learning_rate}"
        if kept is None or kept.best.snapshot is None:
            raise TaskError(f"{what}; {remedy}.")
        kept.best.snapshot.put_(self.student)
        why = f"the state after {kept.best.at} of {self.total} updates, the best so far, was put back"
        self.notes = (Change("", what, f"{why}; {remedy}"),)
        logger.warning("%s; %s.", what, why)


class Gathered:
    """The gradients of the batches of one update: in the end their mean over all samples, however many each batch holds."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.first, self.sum = 0, 0.0

    def weight(self, samples: int) -> float:
        """What the next batch counts beside the first of the update."""
        self.first = self.first or samples
        self.sum += samples / self.first
        return samples / self.first

    @torch.no_grad()
    def mean_(self) -> None:
        """The gradients are whole; the next batch is the first again."""
        if self.sum > 1:
            for parameter in itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups):
                if parameter.grad is not None:
                    parameter.grad /= self.sum
        self.first, self.sum = 0, 0.0


def _fabric(precision: Precision, shares: Shares) -> Any:
    """Numbers and places as lightning-fabric sets them up, for this process alone: what processes share is put together here."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    if shares.size == 1:
        return Fabric(accelerator="auto", devices=1, precision=precision)
    return Fabric(strategy=SingleDeviceStrategy(device=world.device()), precision=precision)


def _passes(batch: Example, size: int | None) -> list[tuple[Example, float]]:
    """The batch in parts of at most `size` samples, each with its part of the loss."""
    if size is None:
        return [(batch, 1.0)]
    given = samples(batch)
    return [(part, samples(part) / given) for part in parts(batch, -(-given // size))]
