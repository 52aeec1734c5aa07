"""An .onnx file that behaves like the torch model it came from, so that the user's own `evaluate` measures the file.

Also how a batch becomes the inputs of a session and a session's outputs become what the model returned: the exporter
writes the shape of the returned value into the file (`STRUCTURE`), because a graph only knows a flat list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from enxuto.batches import arguments, batch_size, entries, is_record, leaves, resized, rows
from enxuto.errors import ExportError
from enxuto.evaluation.session import RUNTIME_ERRORS, Array, open_session

STRUCTURE = "enxuto.outputs"  # metadata key in the .onnx file: what the model returned, as JSON


class Named(dict[str, Any]):
    """A dict whose entries are attributes too, as in the output classes of model libraries (`output.logits`)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def feeds(names: Sequence[str], positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays a session wants, by input name: named arguments by their name, the others in order.

    Raises: ExportError when the tensors do not fill the inputs.
    """
    found: dict[str, Array] = {}
    for name in names:
        if isinstance(named.get(name), Tensor):
            found[name] = _array(named[name])
    rest = [*leaves(positional), *leaves({name: value for name, value in named.items() if name not in found})]
    free = [name for name in names if name not in found]
    if len(free) != len(rest):
        raise ExportError(
            f"the .onnx file takes {len(names)} tensors ({', '.join(names)}) and the call gives "
            f"{len(found) + len(rest)}; call it as the model was called on its calibration batches."
        )
    return found | {name: _array(tensor) for name, tensor in zip(free, rest, strict=True)}


def structure(value: Any) -> Any:
    """What a model returned with its tensors taken out, ready for JSON; `assemble` is the way back."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, Mapping) or is_record(value):
        kind = "dict" if type(value) is dict else "named"
        return [kind, [[name, structure(item)] for name, item in entries(value).items()]]
    if isinstance(value, (tuple, list)):
        return [type(value).__name__ if type(value) in (tuple, list) else "tuple", [structure(item) for item in value]]
    return None


def assemble(shape: Any, tensors: Iterator[Tensor]) -> Any:
    """A value of the given structure, filled with tensors in order."""
    if shape == "tensor":
        return next(tensors)
    if shape is None:
        return None
    kind, items = shape
    if kind in ("dict", "named"):
        filled = {name: assemble(item, tensors) for name, item in items}
        return filled if kind == "dict" else Named(filled)
    inner = [assemble(item, tensors) for item in items]
    return inner if kind == "list" else tuple(inner)


def first_row_arrays(path: str | os.PathLike[str], batch: Any) -> dict[str, Array]:
    """What a session of the file is fed to run the first row of a batch: batch 1, or the file's fixed batch size.

    Raises: ExportError when the runtime does not take the file or the tensors do not fill its inputs.
    """
    model = OnnxModel(path, threads=1)
    row = rows(batch, 0, 1)
    return feeds(model.names, *arguments(resized(row, model.fixed_batch) if model.fixed_batch else row))


class OnnxModel(nn.Module):
    """An .onnx file run by ONNX Runtime as if it were the torch model: tensors in, the model's own output structure
    out.

    Shapes: as the model's; a file with a fixed batch size is fed in parts, the last one padded with its first row.
    Units: `threads` of the runtime, 0 leaves them to it. Results come back on the device of the first input.
    Raises: ExportError when the runtime does not take the file or the inputs.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.threads = threads
        self._open()
        self.eval()

    def _open(self) -> None:
        self.session = open_session(self.path, threads=self.threads)
        inputs = self.session.get_inputs()
        self.names = [item.name for item in inputs]
        fixed = [item.shape[0] for item in inputs if item.shape and isinstance(item.shape[0], int)]
        free = any(item.shape and not isinstance(item.shape[0], int) for item in inputs)
        self.fixed_batch = 0 if free or not fixed else int(fixed[0])
        text = self.session.get_modelmeta().custom_metadata_map.get(STRUCTURE)
        outputs = ["tensor"] * len(self.session.get_outputs())
        self.shape = json.loads(text) if text else "tensor" if len(outputs) == 1 else ["tuple", outputs]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def forward(self, *positional: Any, **named: Any) -> Any:
        given = (positional, named)
        size = batch_size(given)
        device = next((tensor.device for tensor in leaves(given)), torch.device("cpu"))
        fits = size == self.fixed_batch or not self.fixed_batch
        outputs = self._run(*given) if fits else self._in_parts(given, size)
        return assemble(self.shape, iter([torch.from_numpy(output).to(device) for output in outputs]))

    def _in_parts(self, given: tuple[Any, Any], size: int) -> list[Array]:
        parts: list[list[Array]] = []
        for start in range(0, size, self.fixed_batch):
            part = self._run(*resized(rows(given, start, start + self.fixed_batch), self.fixed_batch))
            parts.append([output[: size - start] for output in part])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run(self, positional: Any, named: Any) -> list[Array]:
        arrays = feeds(self.names, positional, named)
        try:
            outputs: list[Array] = self.session.run(None, arrays)
        except RUNTIME_ERRORS as error:
            shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items())
            raise ExportError(
                f"'{Path(self.path).name}' does not run on {shapes}: {error}; "
                "give inputs of the type and shape of the calibration batches, or export float32 if these are they."
            ) from error
        return outputs


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
