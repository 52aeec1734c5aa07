"""What a network keeps beside its tensors, by get_extra_state, as text: plain data alone, so that no file can run code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from enxuto.errors import ArtifactError, TaskError

STATE = "_extra_state"  # as torch names it among the tensors of a layer
_PLAIN = (type(None), bool, int, str)


def is_state(name: str) -> bool:
    """True for the name of extra state in a state_dict."""
    return name.rpartition(".")[2] == STATE


def states(model: nn.Module) -> dict[str, str]:
    """The extra state of each layer that has any, as JSON, by its name in the state_dict.

    Raises: ArtifactError, with the place, for what is no plain data, or stands in the state_dict and is neither.
    """
    found = {}
    for name, value in model.state_dict().items():
        if is_state(name):
            found[name] = _text(name, value)
        elif not isinstance(value, Tensor):
            raise ArtifactError(f"'{name}' in the state_dict is {type(value).__name__}, no tensor; return it by get_extra_state.")
    return found


def set_states_(model: nn.Module, told: Mapping[str, str]) -> None:
    """Gives each layer its extra state again. Raises: ArtifactError when it does not take it."""
    for name, text in told.items():
        try:
            model.get_submodule(name.rpartition(".")[0]).set_extra_state(json.loads(text))
        except Exception as error:
            raise ArtifactError(
                f"set_extra_state does not take '{name}' as {text[:60]} ({type(error).__name__}: {error}); it must take what "
                "get_extra_state gave."
            ) from error


def check_states(model: nn.Module) -> None:
    """Raises TaskError when no file could keep the extra state of a model, a copy, which is given its own."""
    try:
        set_states_(model, states(model))
    except ArtifactError as error:
        raise TaskError(f"the model cannot be kept: {error}") from error


def _text(name: str, value: Any) -> str:
    try:
        odd = _odd(value, "")
        if odd is None:
            return json.dumps(value, separators=(",", ":"))
    except (RecursionError, ValueError) as error:
        odd = f"what no text holds ({error})"
    raise ArtifactError(
        f"'{name}' holds {odd}, and a file keeps numbers, text, None, lists and dicts by text as extra state; "
        "give tensors to register_buffer and the rest in these."
    )


def _odd(value: Any, place: str) -> str | None:
    """The first thing inside that JSON would not give back as it is, and where."""
    if type(value) in _PLAIN or (type(value) is float and math.isfinite(value)):
        return None
    inside = dict(enumerate(value)) if type(value) is list else value
    if type(inside) is not dict or (inside is value and not all(type(key) is str for key in value)):
        kind = f"{value}" if isinstance(value, float) else f"a {type(value).__name__}"
        return f"{kind}{' with other keys than text' if isinstance(value, dict) else ''}{f' at {place}' if place else ''}"
    return next((odd for key, item in inside.items() if (odd := _odd(item, f"{place}[{key!r}]")) is not None), None)
