"""Is it a number at all, and inside what makes sense? For arguments that people write, so anything may come in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from enxuto.errors import RangeError, RecipeError

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def within(value: object, interval: str) -> bool:
    """True for a real number inside an interval as mathematicians write it; False for anything else.

    >>> within(0.5, "[0, 1)"), within(1, "[0, 1)"), within("0.5", "[0, 1)"), within(True, "[0, 1]")
    (True, False, False, False)
    """
    match = _INTERVAL.fullmatch(interval)
    assert match is not None, interval
    if not _is_number(value):
        return False
    try:
        low, high, number = float(match[2]), float(match[3]), float(value)  # type: ignore[arg-type]
    except OverflowError:  # of a whole number with hundreds of digits
        return False
    return (low <= number if match[1] == "[" else low < number) and (number <= high if match[4] == "]" else number < high)


def whole(value: object, least: int = 0, most: float = float("inf")) -> bool:
    """True for an integer from `least` to `most`.

    >>> whole(3), whole(3.0), whole(True), whole("3"), whole(0, least=1)
    (True, False, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_flags(step: Any) -> None:
    """Raises RangeError for a field that is a bool and was given anything else: "no" would count as yes."""
    for field in dataclasses.fields(step):
        if field.type == "bool" and not isinstance(value := getattr(step, field.name), bool):
            raise RangeError(f"{named(field.name, value)} is neither True nor False; write {field.name}={field.default}.")


def check_list(steps: object) -> None:
    """Raises RecipeError for steps that are no list."""
    if isinstance(steps, (str, bytes, Mapping)) or not isinstance(steps, Iterable):
        raise RecipeError(f"steps is {type(steps).__name__}, not a list of steps; write steps=[Quantize(bits=8)].")


def named(noun: str, value: object) -> str:
    """What was given, for an error message: a value as Python writes it, with its type where that is the fault.

    >>> named("bits", "8"), named("bits", 9), named("bits", [8])
    ("bits='8' (str)", 'bits=9', 'bits=[8] (list)')
    """
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{noun}={shown}" if _is_number(value) else f"{noun}={shown} ({type(value).__name__})"


def _is_number(value: object) -> bool:
    """Python's own numbers only: those of numpy and torch do not survive a recipe file."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
