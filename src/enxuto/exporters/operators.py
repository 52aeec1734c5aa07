"""torch's table of what each operator is in ONNX, made once in a process: making it takes longer than most exports."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.onnx._internal.exporter import _registration

_made: dict[tuple[object, ...], Any] = {}


@contextmanager
def table_made_once() -> Iterator[None]:
    """Inside, an export gets a copy of the table that the first one made (measured: half of the time of a small network's)."""
    registry: Any = _registration.ONNXRegistry
    make = vars(registry).get("from_torchlib")
    if not isinstance(make, classmethod):  # another torch: it makes its own
        yield
        return

    def copied(kind: Any, *given: Any, **named: Any) -> Any:
        key = (*given, *sorted(named.items()))
        if key not in _made:
            _made[key] = make.__func__(kind, *given, **named)
        made = copy.copy(_made[key])
        made.functions = {target: list(several) for target, several in made.functions.items()}
        return made

    registry.from_torchlib = classmethod(copied)
    try:
        yield
    finally:
        registry.from_torchlib = make
