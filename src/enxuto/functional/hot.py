"""Loops that numba compiles, at their first call, and how they are kept. Numba is imported late, with what needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def hot(function: Callable[..., Any]) -> Any:
    """The function compiled at its first call, and kept for the next process where a disk can be written.

    It runs without the interpreter's lock, so that threads code several tensors at once. What is kept holds the functions that it
    calls, and numba looks for changes in its own file only: who changes a loop that others call touches their files too.
    """
    from numba import njit

    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no folder it may write to: compile anew in each process
        return njit(nogil=True)(function)
