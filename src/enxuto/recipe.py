"""A recipe: a visible list of steps, run on a copy, with a checkpoint after each; as plain data and YAML too."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import nn

from enxuto import world
from enxuto.checks import check_list
from enxuto.errors import Error, LayerError, NothingChangedError, OutputError, RangeError, RecipeError, TaskError
from enxuto.evidence.kept import keeping
from enxuto.judging import quality
from enxuto.progress import say
from enxuto.records import Change, Record
from enxuto.select import check_patterns
from enxuto.steps.share import Share
from enxuto.steps.table import STEPS
from enxuto.surgery import borrowed, duplicate
from enxuto.task import Step, Task
from enxuto.training.objective import Aim
from enxuto.training.state import resuming
from enxuto.training.terms.table import TERMS

SKIPPED = "nothing to do"
TABLES: dict[str, dict[str, type[Any]]] = {"step": STEPS, "term": TERMS}
"""What plain data names, by the key under which the name stands."""
logger = logging.getLogger(__name__)


def line(step: Step | Aim) -> str:
    """A step, or a term that it holds, as a person writes it: defaults left out.

    >>> from enxuto.steps.prune import Prune
    >>> line(Prune(sparsity=0.9, scope="global"))
    'Prune(sparsity=0.9)'
    """
    defaults = {field.name: field.default for field in dataclasses.fields(step)}  # type: ignore[arg-type]
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in _arguments(step).items() if value != defaults[name])
    return f"{type(step).__name__}({shown})"


def _shown(value: object) -> str:
    if _is_named(value):
        return line(value)  # type: ignore[arg-type]
    if isinstance(value, tuple) and any(map(_is_named, value)):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)


def every(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps, each with those that it holds behind it."""
    for step in steps:
        yield step
        for value in _arguments(step).values():
            yield from every(filter(_is_step, value)) if isinstance(value, tuple) else ()


class Checkpoints(Protocol):
    """Where `run` keeps what it has after each step, so that it can go on from there."""

    def find(self, task: Task, steps: Sequence[Step]) -> tuple[nn.Module, tuple[Record, ...]] | None:
        """What exactly these steps gave before, if that is known."""

    def keep(self, task: Task, steps: Sequence[Step], model: nn.Module, records: Sequence[Record]) -> None:
        """Keeps what these steps gave."""

    def evidence(self, task: Task, steps: Sequence[Step]) -> Path | None:
        """The folder for what the calibration batches show of it; None where nothing is to be kept."""


def run(
    task: Task, steps: Sequence[Step], *, checkpoints: Checkpoints | None = None, strict: bool = False
) -> tuple[nn.Module, tuple[Record, ...]]:
    """The task's model after all steps, and what each did. Nothing is edited in place.

    A step that looked everywhere (layers="*") and found nothing to do is skipped, and its record says why. With `strict`, as
    searches are, that ends the recipe; but not for Share: a network may come with weights that share few enough values.
    With checkpoints, a recipe that begins with the same steps on the same model goes on from there, also after a kill.
    Raises: NothingChangedError or LayerError when no step found anything to do, or one not where its `layers` told it to look.
    """
    if not isinstance(task, Task):
        raise TaskError(f"task is {type(task).__name__}, not a Task; write Task(model, calibration=[batch]).")
    steps = checked(steps)
    world.check(task.model, "the task's model")
    model: nn.Module = _start(task.model, steps).eval()
    records: tuple[Record, ...] = ()
    for done in range(len(steps), 0, -1) if checkpoints is not None else ():
        found = checkpoints.find(task, steps[:done])  # type: ignore[union-attr]
        if world.same(found is not None):  # a slower process may look when the first has kept more already
            model, records = _found(found)
            break
    idle: Error | None = None
    for done in range(len(records), len(steps)):
        step = steps[done]
        logger.info("%s", line(step))
        say(line(step), done, len(steps))
        folder = checkpoints.evidence(task, steps[:done]) if checkpoints is not None and not world.rank() else None
        under_way = checkpoints.evidence(task, steps[: done + 1]) if checkpoints is not None else None
        with torch.random.fork_rng(), keeping(folder, model), resuming(under_way, model):
            torch.manual_seed(task.seed)
            try:
                model, record = step(model, task)
            except (NothingChangedError, LayerError) as error:
                shared = isinstance(step, Share) and isinstance(error, NothingChangedError)
                if not (shared if strict else getattr(step, "layers", None) == "*"):
                    raise
                idle = idle or error
                record = Record("", skipped=(Change("", SKIPPED, str(error)),))
        model.eval()
        records = (*records, replace(record, step=line(step)))
        if checkpoints is not None and not world.rank() and not all(map(was_skipped, records)):
            checkpoints.keep(task, steps[: done + 1], model, records)
    if idle is not None and not strict and all(map(was_skipped, records)):
        raise idle
    if steps:
        say(line(steps[-1]), len(steps), len(steps))
    return model, records if strict else (*records[:-1], *(replace(last, **_beside(last, task, model)) for last in records[-1:]))


def _beside(record: Record, task: Task, model: nn.Module) -> dict[str, Any]:
    """The fields of a record that also says how the network does now at what it could do before, by `task.also`."""
    changes, skipped, figures = record.changes, record.skipped, dict(record.figures)
    for name, evaluate in task.also.items():
        before = world.first(lambda evaluate=evaluate: float(quality(evaluate, task.model).mean()))  # type: ignore[misc]
        try:
            after = world.first(lambda evaluate=evaluate: float(quality(evaluate, model).mean()))  # type: ignore[misc]
        except TaskError as error:  # as of an old head that reads channels which are gone
            skipped = (*skipped, Change("", f"also '{name}': {before:.4g} before, and it cannot be judged any more", str(error)))
            continue
        figures |= {f"also {name}, before": before, f"also {name}, after": after}
        changes = (
            *changes,
            Change("", f"also '{name}': {before:.4g} before, {after:.4g} after", "what the whole recipe left of it"),
        )
    return {"changes": changes, "skipped": skipped, "figures": figures}


def _found(checkpoint: tuple[nn.Module, tuple[Record, ...]] | None) -> tuple[nn.Module, tuple[Record, ...]]:
    """Raises: OutputError where the first process has a checkpoint that this one cannot read."""
    if checkpoint is None:
        raise OutputError(
            f"process {world.rank()} of {world.size()} does not find the checkpoint that the first goes on from; give a folder "
            "in out= that all of them see, or an empty one."
        )
    return checkpoint


def _start(model: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """What a recipe begins with: a copy, which takes no memory where only steps that are known to edit nothing get it."""
    ours = steps and all(type(step) in STEPS.values() for step in steps)
    return borrowed(model) if ours else duplicate(model)


def was_skipped(record: Record) -> bool:
    """True for the record of a step that found nothing to do in the whole model."""
    return not record.changes and any(not change.path and change.what == SKIPPED for change in record.skipped)


def checked(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of a recipe as a tuple.

    Raises: RecipeError when they are no list, or one of them is no step; LayerError for layers= of another type.
    """
    check_list(steps)
    found = tuple(steps)
    for place, step in enumerate(found, 1):
        if not _is_step(step):
            name = f"the class {step.__name__}" if isinstance(step, type) else repr(step)[:60]
            raise RecipeError(
                f"step {place} of the recipe is {name}, which is no step; write for example Quantize(bits=8), or an own step: an "
                "instance of a frozen dataclass that is called as step(model, task) and returns (model, Record)."
            )
        for name, value in _arguments(step).items():
            if not _is_plain(value):
                raise RecipeError(
                    f"step {place} of the recipe, {type(step).__name__}, holds {type(value).__name__} in its field {name!r}; a "
                    "field is None, a bool, a number, a text, or a list, tuple or dict of these: make what else it needs in "
                    "__call__, from the task."
                )
        check_patterns(getattr(step, "layers", "*"))
    return found


def to_data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The recipe as plain data: one dict a step, its name under "step" and every argument, so that it means the same for ever."""
    return [_told(step) for step in steps]


def _told(item: Step | Aim) -> dict[str, Any]:
    key = "step" if _is_step(item) else "term"
    return {key: _name(type(item), key), **{name: _data(value) for name, value in _arguments(item).items()}}


def _data(value: Any) -> Any:
    """An argument as plain data: of steps and terms that a step holds the same as of others."""
    return [_told(item) for item in value] if isinstance(value, tuple) and value and all(map(_is_named, value)) else value


def from_data(data: Sequence[Mapping[str, Any]], *, own: bool = False) -> tuple[Step, ...]:
    """The inverse of `to_data`; an argument that is not there has its default. Only with `own` may it name steps of yours,
    "module:Class", whose module is then imported.

    Raises: RecipeError for an unknown step or argument; RangeError for a value out of range.
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise RecipeError(f"a recipe is a list of steps, not {type(data).__name__}; write '- step: Prune' lines.")
    return tuple(_made("step", item, f"step {place}", own=own) for place, item in enumerate(data, 1))


def _made(key: str, item: Any, place: str, *, own: bool) -> Any:
    """The step or term that an item of plain data says; `place` is where it stands."""
    name = item.get(key) if isinstance(item, Mapping) else item
    kind = _kind(name, key, own=own) if isinstance(item, Mapping) else None
    if kind is None:
        hint = f"use one of {', '.join(TABLES[key])}"
        if isinstance(name, str) and ":" in name:
            hint = (
                "a frozen dataclass there would be" if own else "from_yaml(text, own=True) imports steps of your own by that path"
            )
        raise RecipeError(f"{place} of the recipe is {name!r}, which is not known; {hint}.")
    arguments = {name: _argument(value, own=own) for name, value in item.items() if name != key}
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise RecipeError(f"{place}, {item[key]}, has no argument {unknown[0]!r}; its arguments are {', '.join(known)}.")
    try:
        return kind(**arguments)
    except RangeError as error:
        raise RangeError(f"{place}, {item[key]}: {error}") from error
    except TypeError as error:
        raise RecipeError(f"{place}, {item[key]}, has an argument of the wrong type: {error}; see its page.") from error


def _argument(value: Any, *, own: bool) -> Any:
    """The inverse of `_data`."""
    if isinstance(value, (list, tuple)):
        for key in TABLES:
            if value and all(isinstance(item, Mapping) and key in item for item in value):
                return tuple(_made(key, item, f"{key} {place}", own=own) for place, item in enumerate(value, 1))
        return tuple(value)
    return value


def to_yaml(steps: Sequence[Step]) -> str:
    """The recipe as YAML, one block a step."""
    plain = json.loads(json.dumps(to_data(steps)))
    return yaml.safe_dump(plain, sort_keys=False)


def from_yaml(text: str, *, own: bool = False) -> tuple[Step, ...]:
    """The inverse of `to_yaml`; JSON is understood as well, and `own` as in `from_data`.

    Raises: RecipeError when the text is no YAML or no recipe.
    """
    try:
        return from_data(yaml.safe_load(text), own=own)
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe is not valid YAML: {error}; write a list of '- step: Name' blocks.") from error


def _name(kind: type[Any], key: str) -> str:
    """What a recipe calls a step or term: its name, or for one that the table lacks the path to import it by."""
    return kind.__name__ if TABLES[key].get(kind.__name__) is kind else f"{kind.__module__}:{kind.__qualname__}"


def _kind(name: object, key: str, *, own: bool) -> type[Any] | None:
    """The class of that name, if a recipe may name it."""
    if not isinstance(name, str) or ":" not in name or not own:
        return TABLES[key].get(name) if isinstance(name, str) else None
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError):  # for '.': relative to nothing
        return None
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def _is_plain(value: object) -> bool:
    """True for what a file can say: a recipe is written down, and known again after a kill."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if _is_named(value):
        return all(map(_is_plain, _arguments(value).values()))  # type: ignore[arg-type]
    return value is None or isinstance(value, (bool, int, float, str))


def _is_step(value: object) -> bool:
    return not isinstance(value, type) and dataclasses.is_dataclass(value) and isinstance(value, Step)


def _is_named(value: object) -> bool:
    """True for a step, and for a term that a step holds."""
    return _is_step(value) or (not isinstance(value, type) and dataclasses.is_dataclass(value) and isinstance(value, Aim))


def _arguments(step: Step | Aim) -> dict[str, Any]:
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}  # type: ignore[arg-type]
