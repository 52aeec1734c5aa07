"""From a Python file to the Task it defines, with an error that a person can act on for all that can be wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch

from enxuto.errors import Error, TaskError
from enxuto.progress import say
from enxuto.task import Task

_ADVICE = "add a function `task()` that returns enxuto.Task(model, calibration=...); `enxuto init` writes an example"


def load_task(path: Path, seed: int | None = None) -> Task:
    """The Task that a file defines as `task`, itself or as a function without arguments.

    The file's folder goes on `sys.path` and its module into `sys.modules`, so that what it imports is found; its own
    classes and functions travel to fresh processes by value, so that the file does not run again there. Torch's
    generator starts from the seed, or from 0: the same file gives the same network each time.
    Raises: TaskError, naming file and line, when the file is missing, does not run, or defines no Task.
    """
    code = _compile(path)
    say(f"running {path.name}")
    module = _run(path, code, seed)
    say(f"running {path.name}", 1, 1)
    found = getattr(module, "task", None)
    if found is None:
        raise TaskError(f"'{path}' defines no `task`; {_ADVICE}.")
    place = f"'{path}'"
    if not isinstance(found, Task) and callable(found):
        place = f"task() in {_where(path, found)}"
        _check_takes_nothing(found, place)
        found = _guarded(path, found)
    if not isinstance(found, Task):
        raise TaskError(f"{place} gives {type(found).__name__}, not an enxuto.Task; {_ADVICE}.")
    return found if seed is None else dataclasses.replace(found, seed=seed)


def _compile(path: Path) -> Any:
    if not path.exists():
        raise TaskError(f"task file '{path}' does not exist; write one with `enxuto init {path}`, or name another.")
    if not path.is_file() or path.suffix != ".py":
        raise TaskError(f"'{path}' is no Python file; name a .py file that defines `task`, as `enxuto init` writes.")
    try:
        return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        place = f"'{path}' line {error.lineno}" if error.lineno else f"'{path}'"
        raise TaskError(f"{place} is not valid Python: {error.msg}; correct it.") from error
    except (ValueError, OSError) as error:  # a null byte, an encoding, no permission
        raise TaskError(f"'{path}' cannot be read as Python: {error}; save it as UTF-8 text.") from error


def _run(path: Path, code: Any, seed: int | None) -> ModuleType:
    """The module of the file, run."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    cloudpickle.register_pickle_by_value(module)
    torch.manual_seed(seed or 0)  # torch itself starts elsewhere each time, and a network trained here would differ
    _guarded(path, lambda: exec(code, module.__dict__))
    return module


def _module_name(path: Path) -> str:
    """The file's own name, so that pickles of it are found again; another one where that would hide a module in use."""
    stem = path.stem
    known = sys.modules.get(stem)
    same = known is not None and getattr(known, "__file__", None) == str(path.resolve())
    if stem.isidentifier() and (known is None or same) and stem not in sys.stdlib_module_names:
        return stem
    return f"enxuto_task_file_{stem}"


def _guarded(path: Path, function: Callable[[], Any]) -> Any:
    """What the user's code returns; whatever it raises becomes a TaskError with the line of the file."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f" line {frames[-1].lineno}" if frames else ""
        if isinstance(error, Error):
            raise TaskError(f"'{path}'{line}: {error}") from error
        raise TaskError(
            f"'{path}'{line} fails with {type(error).__name__}: {error}; correct it, or see the traceback with --debug."
        ) from error


def _check_takes_nothing(function: Callable[..., Any], place: str) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise TaskError(f"{place} needs the argument {needed[0]!r}; it is called without any, so give it a default value.")


def _where(path: Path, function: object) -> str:
    code = getattr(function, "__code__", None)
    return f"'{path}' line {code.co_firstlineno}" if code is not None else f"'{path}'"
