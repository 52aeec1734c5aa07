"""Training with what will be shipped in view: `prepare` before, `convert` after, any loop between.

The layers of a prepared model keep float leaves and see them through the projection they will be shipped with; a
`Schedule` tightens that projection as training goes on. `Recover` uses the same two halves, `rehearse_` and `settle_`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from enxuto.copies import without_graphs_
from enxuto.errors import RangeError, RecipeError
from enxuto.layers.coded import Coded, code_, decode_, dense, sources
from enxuto.layers.computed import free
from enxuto.layers.grids import CodedTensor
from enxuto.layers.rehearsal import Rehearsal
from enxuto.sites import held_by, sites
from enxuto.surgery import duplicate
from enxuto.task import Step, Task

_log = logging.getLogger(__name__)


@runtime_checkable
class Rehearsable(Protocol):
    """A step that can be tightened while a user trains: from `strength` 0 (not yet) to 1 (as it will be shipped)."""

    def rehearse_(self, model: nn.Module, strength: float) -> None: ...


@runtime_checkable
class Calibrated(Protocol):
    """A step that looks at the calibration batches once before a user trains."""

    def calibrate_(self, model: nn.Module, task: Task) -> None: ...


def prepare(task: Task, steps: Sequence[Step] = (), *, gradual: bool = False) -> nn.Module:
    """A copy of the task's model to train in a loop of one's own, in which every lossy step is already at work.

    Prune, Quantize and Share project float leaves at every forward pass; PruneChannels, Factorize and Fold are done at
    once, so that the smaller layers are what trains. What is compressed already stays so: zeros (of biases those of masks) stay
    zero under any optimizer, codes follow float leaves, and their grids learn; without steps this is all it does. A weight that
    is zero throughout stays so too, and is named in the log. With `gradual`, projections of weights wait for a `Schedule`. The
    ranges of inputs, if Quantize is to round them, are those of before the training. Make the optimizer after this call, from
    the parameters of the copy.
    Raises: RecipeError for a step that trains by itself, or that changes layers after others made them train; the errors of
    the steps themselves.
    """
    if not isinstance(task, Task):
        raise RecipeError(f"task is {type(task).__name__}, not a Task; write Task(model, calibration=[batch]).")
    model = duplicate(task.model)
    for leaf in model.modules():
        if isinstance(leaf, Rehearsal):
            leaf.passed = ()  # these steps are the ones to decide
    for weight in sites(model):
        if not bool(weight.read().count_nonzero()):
            _log.warning("'%s' is zero throughout and stays so; give it small values before if it is to learn.", weight.key)
    projected = ""
    for step in steps:
        if isinstance(step, type) or not isinstance(step, Step):
            raise RecipeError(f"{step!r} in steps is no step; write for example Quantize(bits=8).")
        if hasattr(step, "epochs"):
            raise RecipeError(f"{type(step).__name__} trains by itself; prepare is for your own loop: leave the step out.")
        if isinstance(step, Rehearsable):
            step.rehearse_(model, 0.0 if gradual else 1.0)
            if isinstance(step, Calibrated):
                step.calibrate_(model, task)
            projected = projected or type(step).__name__
        elif projected:
            raise RecipeError(
                f"{type(step).__name__} makes new layers, but {projected} before it already trains the old ones; "
                f"put {type(step).__name__} first."
            )
        else:
            model, _ = step(model, task)
    return rehearse_(model).train()


class Schedule:
    """Tightens the steps of a prepared model: call `step` after each batch.

    Nothing until `begin` (a fraction of all batches), everything from `end` on; between, the strength grows along the cubic
    of Zhu, Gupta 2017, "To prune or not to prune", eq. 1, in `updates` updates.
    Raises: RangeError when the fractions do not ascend in 0...1 or there is no batch.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: Sequence[Step],
        *,
        batches: int,
        begin: float = 0.0,
        end: float = 0.7,
        updates: int = 25,
    ) -> None:
        if batches < 1 or updates < 1 or not 0 <= begin < end <= 1:
            raise RangeError(
                f"a schedule of {batches} batches from begin={begin} to end={end} makes no sense; use 0 <= begin < end <= 1."
            )
        self.model, self.steps = model, [step for step in steps if isinstance(step, Rehearsable)]
        self.first, self.last = round(begin * batches), max(1, round(end * batches))
        self.every = max(1, (self.last - self.first) // updates)
        self.done = 0

    @property
    def strength(self) -> float:
        """How tight the steps are now, 0...1."""
        if self.done >= self.last:
            return 1.0
        part = (self.done - self.first) / max(1, self.last - self.first)
        return 1 - (1 - min(1.0, max(0.0, part))) ** 3

    def step(self) -> None:
        """One batch was trained; raises the strength when it is time."""
        self.done += 1
        due = self.first <= self.done < self.last and (self.done - self.first) % self.every == 0
        if due or self.done == self.last:
            for step in self.steps:
                step.rehearse_(self.model, self.strength)


def convert(model: nn.Module) -> nn.Module:
    """The trained model as it ships: codes where there was a grid, exact zeros where weights were out, plain floats else."""
    return settle_(duplicate(model)).eval()


def rehearse_(model: nn.Module) -> nn.Module:
    """Makes a compressed model trainable as it is: zeros stay zero, codes follow float leaves, grids learn.

    Which zeros: all of weights, and of other parameters what `free` leaves out.
    """
    for weight in sites(model):
        if isinstance(weight.tensor, CodedTensor) or bool((weight.read() == 0).any()):
            weight.rehearsal_()
    shared: dict[nn.Module | Tensor, Rehearsal] = {}  # tied parameters stay tied
    for module in list(model.modules()):  # biases, norms, and parameters that no layer kind covers
        if isinstance(module, (Rehearsal, ParametrizationList)):
            continue
        for name, held in held_by(module).items():
            if isinstance(held, CodedTensor):
                if held not in shared:
                    shared[held] = Rehearsal(dense(held), keep=free(module, name, dense(held)))
                    shared[held].see_(held)
            elif isinstance(held, Tensor) and held.requires_grad and held not in shared:
                keep = free(module, name, held)
                if keep is not None:
                    shared[held] = Rehearsal(held, keep=keep)
            if held in shared:
                code_(module, name, shared[held])
    return model


def settle_(model: nn.Module) -> nn.Module:
    """Ends every rehearsal: codes where there was a grid, plain floats where there was none."""
    settled: dict[nn.Module, nn.Parameter | CodedTensor] = {}  # tied layers stay tied
    for module in list(model.modules()):
        for name, leaf in list(sources(module).items()):
            if not isinstance(leaf, Rehearsal):
                continue
            if leaf not in settled:
                frozen = leaf.frozen()
                if isinstance(frozen, Tensor):
                    frozen = nn.Parameter(frozen, requires_grad=leaf.leaf.requires_grad)
                settled[leaf] = frozen
            now = settled[leaf]
            if isinstance(now, CodedTensor):
                code_(module, name, now)
            else:
                del sources(module)[name]
                module.register_parameter(name, now)
        if isinstance(module, Coded) and not sources(module):
            decode_(module)
    return without_graphs_(model)
