"""What tightens while one trains: steps at a strength that grows from nothing to what ships, and what gradients tell them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from enxuto.checks import check_list, whole, within
from enxuto.errors import RangeError, RecipeError, TaskError
from enxuto.layers.rehearsal import Rehearsal
from enxuto.select import Patterns
from enxuto.sites import Site, sites
from enxuto.task import Step, Task


@runtime_checkable
class Rehearsable(Protocol):
    """A step that can be tightened while a user trains: from `strength` 0 (not yet) to 1 (as it will be shipped)."""

    def rehearse_(self, model: nn.Module, strength: float) -> None: ...


@runtime_checkable
class Calibrated(Protocol):
    """A step that looks at the calibration batches once before a user trains."""

    def calibrate_(self, model: nn.Module, task: Task) -> None: ...


@dataclass(frozen=True, eq=False)
class Look:
    """What a step meets between the backward pass and the update: `done` of `batches` are trained, and this one is not yet."""

    optimizer: Optimizer
    done: int
    batches: int
    gradients: dict[Rehearsal, Tensor | None] = field(default_factory=dict)  # what leaves have met, for all steps that ask

    def due(self, updates: int, end: float) -> bool:
        """True in so many batches, evenly until the fraction `end` of all; in each where there are fewer; never in the first."""
        return 0 < self.done < round(end * self.batches) and self.done % max(1, round(end * self.batches / updates)) == 0

    def forget_(self, leaf: nn.Parameter, keep: Tensor) -> None:
        """What the optimizer remembers of a leaf (momentum, mean squares) is zero from now on where it does not stay."""
        for held in self.optimizer.state.get(leaf, {}).values():
            if isinstance(held, Tensor) and held.shape == leaf.shape and leaf.ndim:
                held.masked_fill_(~keep, 0)

    def met(self, model: nn.Module, layers: Patterns) -> Iterator[tuple[Site, Rehearsal, Tensor | None]]:
        """The chosen weights of a prepared model, their rehearsals, and the gradients that these have met since the last look:
        the mean over all processes that train; None where a layer was not used.

        Raises: RecipeError when a weight has no leaf, as of a model that was prepared without the step.
        """
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        for weight in sites(model, layers):
            leaf = weight.tensor
            if not isinstance(leaf, Rehearsal):
                raise RecipeError(
                    f"'{weight.key}' has no leaf whose gradients could be looked at; give prepare the same steps as the Schedule."
                )
            if leaf not in self.gradients:
                gradient = self.gradients[leaf] = leaf.taken()
                if several and gradient is not None:
                    torch.distributed.all_reduce(gradient)
                    gradient /= torch.distributed.get_world_size()
            yield weight, leaf, self.gradients[leaf]


@runtime_checkable
class Observing(Protocol):
    """A step that, where `observes` says so, looks at gradients after each backward pass and before the update."""

    @property
    def observes(self) -> bool: ...

    def observe_(self, model: nn.Module, look: Look) -> None: ...


def check_whole(model: nn.Module, asked: str, instead: str) -> None:
    """Raises: TaskError when weights of the model are sharded, so that each process holds a part of them."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):  # as those of torch.distributed.fsdp.fully_shard
            raise TaskError(f"{asked}, and '{name}' is sharded over several processes; {instead}.")


def _leaves(model: nn.Module) -> list[Rehearsal]:
    return [module for module in model.modules() if isinstance(module, Rehearsal)]


class Schedule:
    """Tightens the steps of a prepared model: call `step` after each batch.

    Nothing until `begin` (a fraction of all batches), everything from `end` on; between, the strength grows along the cubic
    of Zhu, Gupta 2017, "To prune or not to prune", eq. 1, in `updates` updates. With `end=0` strength is left as prepared.
    Steps that look at gradients (Regrow, Prune by movement) also need `observe`, between the backward pass and the update.
    Raises: RangeError when the fractions do not ascend in 0...1 or there is no batch; RecipeError for a model that was not
    prepared.
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
        check_list(steps)
        fit = within(begin, "[0, 1]") and (within(end, f"({begin}, 1]") or begin == end == 0)
        if not (fit and whole(batches, 1) and whole(updates, 1)):
            raise RangeError(
                f"a schedule of batches={batches!r} in updates={updates!r} from begin={begin!r} to end={end!r} makes no sense; "
                "use whole numbers and 0 <= begin < end <= 1."
            )
        self.model, self.steps = model, [step for step in steps if isinstance(step, Rehearsable)]
        if not isinstance(model, nn.Module) or (self.steps and not _leaves(model)):
            raise RecipeError(
                f"model is {type(model).__name__} without leaves to tighten: prepare did not make it, or not with these "
                "steps; write model = prepare(task, steps, gradual=True), and make the optimizer of its parameters."
            )
        self.observing = [step for step in steps if isinstance(step, Observing) and step.observes]
        self.observed = False  # since the last batch
        self.batches = batches
        self.first, self.last = round(begin * batches), max(1, round(end * batches)) if end else 0
        self.every = max(1, (self.last - self.first) // updates)
        self.done = 0

    @property
    def strength(self) -> float:
        """How tight the steps are now, 0...1."""
        if self.done >= self.last:
            return 1.0
        part = (self.done - self.first) / max(1, self.last - self.first)
        return 1 - (1 - min(1.0, max(0.0, part))) ** 3

    def observe(self, optimizer: Optimizer) -> None:
        """Shows the gradients to the steps that look at them: call it after the backward pass, before `optimizer.step()`."""
        if self.done == 0 and self.steps:
            learned = {id(each) for group in optimizer.param_groups for each in group["params"]}
            if not any(id(leaf.leaf) in learned for leaf in _leaves(self.model)):
                raise TaskError(
                    "the optimizer shown to the schedule has no weight of the prepared model, so it would train another one; "
                    "make it after prepare, of model.parameters()."
                )
        look = Look(optimizer, self.done, self.batches)
        for step in self.observing:
            step.observe_(self.model, look)
        self.observed = True

    def finish_(self) -> None:
        """Raises the strength to all there is, where fewer batches were trained than were told."""
        if self.done < self.last:
            self.done = self.last
            for step in self.steps:
                step.rehearse_(self.model, self.strength)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps of it, beside the model's own state dict."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a checkpoint; the model loads its own."""
        self.done = state["done"]

    def step(self) -> None:
        """One batch was trained; raises the strength when it is time.

        Raises: TaskError when a step looks at gradients and nobody has shown them.
        """
        if self.observing and not self.observed:
            raise TaskError(
                f"{type(self.observing[0]).__name__} looks at gradients, and none were shown for batch {self.done + 1}; call "
                "schedule.observe(optimizer) between loss.backward() and optimizer.step()."
            )
        self.observed = False
        self.done += 1
        due = self.first <= self.done < self.last and (self.done - self.first) % self.every == 0
        if due or self.done == self.last:
            check_whole(
                self.model,
                "a Schedule tightens whole weights",
                "prepare with all at work from the first batch (without gradual=True)",
            )
            for step in self.steps:
                step.rehearse_(self.model, self.strength)
