"""Processes of their own that start at once: branches of one that has imported what they need, and done nothing else.

A new interpreter takes three seconds until torch, numba and the kernels of a file are there, and tests would start some hundred.
Those of what an interpreter is like at its start, and of its memory, start a real one.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

from enxuto.evaluation import fresh

OWN = os.getpid()


def in_a_branch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As `in_fresh_process`: what travels is pickled, and the branch has nothing else of this process."""
    if os.getpid() != OWN:  # a fork of this process has no root
        return fresh.in_fresh_process(function, *args, **kwargs)
    with patch.object(fresh, "_run", _run):
        return fresh.in_fresh_process(function, *args, **kwargs)


def ends(code: str, printed: str | os.PathLike[str] = os.devnull) -> int:
    """The exit status of `python -c code`; `printed` takes what it says."""
    return _branched(_obey, (code,), printed)


def _run(job: Path, answer: Path, printed: Path) -> int:
    return _branched(fresh._main, (os.fspath(job), os.fspath(answer)), printed)


def _branched(work: Callable[..., object], args: tuple[str, ...], printed: str | os.PathLike[str]) -> int:
    given = (work, args, os.fspath(printed), dict(os.environ), sys.path, os.getcwd())
    branch = _root().Process(target=_works, args=given)
    branch.start()
    try:
        branch.join()
    finally:  # also on Ctrl-C
        if branch.is_alive():
            branch.kill()
            branch.join()
    assert branch.exitcode is not None
    return branch.exitcode


@functools.cache
def _root() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["branch_root"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([*sys.path, os.path.dirname(__file__)])):
        forkserver.ensure_running()
    return context


def _works(
    work: Callable[..., object], args: tuple[str, ...], printed: str, environment: dict[str, str], path: list[str], folder: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    os.chdir(folder)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True) for number in (1, 2))
    work(*args)


def _obey(code: str) -> None:
    exec(compile(code, "<branch>", "exec"), {"__name__": "__main__"})
