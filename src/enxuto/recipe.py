"""A recipe: a visible list of steps, run on a copy, with a checkpoint after each; as plain data and YAML too."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import yaml
from torch import nn

from enxuto.errors import RangeError, RecipeError
from enxuto.progress import say
from enxuto.select import check_patterns
from enxuto.steps.table import STEPS
from enxuto.surgery import duplicate
from enxuto.task import Record, Step, Task

logger = logging.getLogger(__name__)


def line(step: Step) -> str:
    """A step as a person writes it: defaults left out.

    >>> from enxuto.steps.prune import Prune
    >>> line(Prune(sparsity=0.9, scope="global"))
    'Prune(sparsity=0.9)'
    """
    defaults = {field.name: field.default for field in dataclasses.fields(step)}  # type: ignore[arg-type]
    shown = ", ".join(f"{name}={value!r}" for name, value in _arguments(step).items() if value != defaults[name])
    return f"{type(step).__name__}({shown})"


class Checkpoints(Protocol):
    """Where `run` keeps what it has after each step, so that it can go on from there."""

    def find(self, task: Task, steps: Sequence[Step]) -> tuple[nn.Module, tuple[Record, ...]] | None:
        """What exactly these steps gave before, if that is known."""

    def keep(self, task: Task, steps: Sequence[Step], model: nn.Module, records: Sequence[Record]) -> None:
        """Keeps what these steps gave."""


def run(task: Task, steps: Sequence[Step], *, checkpoints: Checkpoints | None = None) -> tuple[nn.Module, tuple[Record, ...]]:
    """The task's model after all steps, and what each did. Nothing is edited in place.

    With checkpoints, a recipe that begins with the same steps on the same model goes on from there, also after a kill.
    """
    steps = checked(steps)
    model: nn.Module = duplicate(task.model).eval()
    records: tuple[Record, ...] = ()
    for done in range(len(steps), 0, -1) if checkpoints is not None else ():
        found = checkpoints.find(task, steps[:done])  # type: ignore[union-attr]
        if found is not None:
            model, records = found
            break
    for done in range(len(records), len(steps)):
        step = steps[done]
        logger.info("%s", line(step))
        say(line(step), done, len(steps))
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            model, record = step(model, task)
        model.eval()
        records = (*records, replace(record, step=line(step)))
        if checkpoints is not None:
            checkpoints.keep(task, steps[: done + 1], model, records)
    if steps:
        say(line(steps[-1]), len(steps), len(steps))
    return model, records


def checked(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of a recipe as a tuple.

    Raises: RecipeError when they are no list, or one of them is no step; LayerError for layers= of another type.
    """
    if isinstance(steps, (str, bytes, Mapping)) or not isinstance(steps, Iterable):
        raise RecipeError(f"steps is {type(steps).__name__}, not a list of steps; write steps=[Quantize(bits=8)].")
    found = tuple(steps)
    for place, step in enumerate(found, 1):
        if isinstance(step, type) or not dataclasses.is_dataclass(step) or not isinstance(step, Step):
            name = f"the class {step.__name__}" if isinstance(step, type) else repr(step)[:60]
            raise RecipeError(f"step {place} of the recipe is {name}, which is no step; write for example Quantize(bits=8).")
        check_patterns(getattr(step, "layers", "*"))
    return found


def to_data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The recipe as plain data: one dict a step, its name under "step" and every argument, so that it means the same for ever."""
    return [{"step": type(step).__name__, **_arguments(step)} for step in steps]


def from_data(data: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The inverse of `to_data`; an argument that is not there has its default.

    Raises: RecipeError for an unknown step or argument; RangeError for a value out of range.
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise RecipeError(f"a recipe is a list of steps, not {type(data).__name__}; write '- step: Prune' lines.")
    steps = []
    for place, item in enumerate(data, 1):
        if not isinstance(item, Mapping) or not isinstance(item.get("step"), str) or item["step"] not in STEPS:
            name = item.get("step") if isinstance(item, Mapping) else item
            raise RecipeError(f"step {place} of the recipe is {name!r}, which is not known; use one of {', '.join(STEPS)}.")
        kind = STEPS[item["step"]]
        arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in item.items() if key != "step"}
        known = [field.name for field in dataclasses.fields(kind)]
        unknown = [key for key in arguments if key not in known]
        if unknown:
            raise RecipeError(
                f"step {place}, {item['step']}, has no argument {unknown[0]!r}; its arguments are {', '.join(known)}."
            )
        try:
            steps.append(kind(**arguments))
        except RangeError as error:
            raise RangeError(f"step {place}, {item['step']}: {error}") from error
        except TypeError as error:
            raise RecipeError(
                f"step {place}, {item['step']}, has an argument of the wrong type: {error}; see its page."
            ) from error
    return tuple(steps)


def to_yaml(steps: Sequence[Step]) -> str:
    """The recipe as YAML, one block a step."""
    plain = json.loads(json.dumps(to_data(steps)))
    return yaml.safe_dump(plain, sort_keys=False)


def from_yaml(text: str) -> tuple[Step, ...]:
    """The inverse of `to_yaml`; JSON is understood as well.

    Raises: RecipeError when the text is no YAML or no recipe.
    """
    try:
        return from_data(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe is not valid YAML: {error}; write a list of '- step: Name' blocks.") from error


def _arguments(step: Step) -> dict[str, Any]:
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}  # type: ignore[arg-type]
