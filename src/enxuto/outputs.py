"""What a model returned: its tensors by name, and as what each is judged and taught."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn

from enxuto.batches import entries, is_record
from enxuto.errors import TaskError
from enxuto.functional.likeness import class_axis
from enxuto.select import matches

Kind = Literal["classes", "values", "ignore"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Outputs = Kind | Mapping[str, Kind]
"""As what outputs are judged: one word for all, or a word by name or wildcard."""

LOSS = "loss"  # where models that are given labels return their own loss


def output_tensors(outputs: Any) -> dict[str, Tensor]:
    """All tensors in what a model returned, by the keys, fields or places that lead to them: "logits", "0", "boxes.1".

    A single tensor is "0". What a model returns as its own loss, and tensors without values, are no outputs.
    """
    return {path or "0": tensor for path, tensor in _walk(outputs, "") if tensor.numel() and (path != LOSS or tensor.ndim)}


def output_names(outputs: Any) -> list[str]:
    """What a model that returns a dict or a record calls each of its tensors; empty for those that have a place alone."""
    return ["" if path.partition(".")[0].isdigit() else path for path, _ in _walk(outputs, "")]


@contextmanager
def returned_as(model: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """The model returns what `change` makes of its outputs, for tracers, which know no classes of a user's."""
    handle = model.register_forward_hook(lambda module, given, outputs: change(outputs))
    try:
        yield
    finally:
        handle.remove()


def _walk(outputs: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield path, outputs
        return
    for key, item in _items(outputs):
        yield from _walk(item, f"{path}.{key}" if path else key)


def _items(outputs: Any) -> list[tuple[str, Any]]:
    if isinstance(outputs, Mapping) or is_record(outputs):
        return list(entries(outputs).items())
    if isinstance(outputs, (tuple, list)):
        return list(zip(getattr(outputs, "_fields", map(str, range(len(outputs)))), outputs, strict=True))
    return []


def said_of(tensors: Mapping[str, Tensor], outputs: Outputs | None) -> dict[str, Kind | None]:
    """What the task says of each output that is not to be ignored; None where it says nothing.

    Raises: TaskError for a name that no output has, for classes where there is no axis of them, or when nothing is left.
    """
    said: dict[str, Kind | None]
    if isinstance(outputs, Mapping):
        for pattern in outputs:
            if not any(matches(name, pattern) for name in tensors):
                raise TaskError(f"outputs= names {pattern!r}, and the model returns {_listed(tensors)}; use those names.")
        said = {name: next((kind for pattern, kind in outputs.items() if matches(name, pattern)), None) for name in tensors}
    else:
        said = dict.fromkeys(tensors, outputs)
    for name, tensor in tensors.items():
        if said[name] == "classes" and not (
            tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[class_axis(tensor.ndim)] > 1
        ):
            raise TaskError(
                f"outputs= says that output {name!r} holds a score for each class, and it is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}; say 'values', or 'ignore', for it."
            )
    left: dict[str, Kind | None] = {name: kind for name, kind in said.items() if kind != "ignore"}
    if not left:
        raise TaskError(f"no output is left to judge of {_listed(tensors)}; say 'ignore' of fewer in outputs=.")
    return left


def check_kinds(outputs: object) -> None:
    """Raises TaskError when this is nothing that `outputs=` of a task can be."""
    kinds = list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]
    for kind in kinds if outputs is not None else ():
        if not isinstance(kind, str) or kind not in KINDS:
            raise TaskError(
                f"outputs={outputs!r} is not known; use one of {', '.join(map(repr, KINDS))} for all outputs, "
                "or a dict of them by name."
            )


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name!r} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "no tensor"
