"""Runs a .nxt file that carries its graph, or an .onnx file, in ONNX Runtime: no torch is imported.

>>> import enxuto.runtime as runtime
>>> runtime.open("small.nxt")(images)  # doctest: +SKIP
array([[...]], dtype=float32)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enxuto.errors import ExportError
from enxuto.extras import explained

with explained("enxuto.runtime"):
    from enxuto.evaluation.session import RUNTIME_ERRORS, open_session

__all__ = ["Network", "open"]

_NUMPY = {f"tensor({name})": name for name in ("float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")}
_NUMPY |= {"tensor(float)": "float32", "tensor(double)": "float64"}


class Network:
    """A network that is ready to run: call it with its inputs, in their order or by name, and it gives its outputs."""

    def __init__(self, graph: bytes | str, name: str, threads: int) -> None:
        self._session = open_session(graph, threads=threads)
        self.name = name
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())
        self._types = {item.name: item.type for item in self._session.get_inputs()}

    def __call__(self, *inputs: ArrayLike, **named: ArrayLike) -> NDArray[Any] | tuple[NDArray[Any], ...]:
        """The output, or a tuple of them where there are several.

        Numbers are taken in the type that the network asks for, but never a float as an integer.

        Raises: ExportError when there are too few or too many inputs, or they do not fit.
        """
        given = dict(zip(self.inputs, inputs, strict=False)) | named
        if len(inputs) + len(named) != len(self.inputs) or set(given) != set(self.inputs):
            raise ExportError(
                f"'{self.name}' was given {len(inputs)} inputs in a row and {', '.join(named) or 'none'} by name; "
                f"give each of {', '.join(self.inputs)} once."
            )
        try:
            found = self._session.run(None, {name: self._array(name, value) for name, value in given.items()})
        except (*RUNTIME_ERRORS, ValueError, TypeError, RuntimeError) as error:
            raise ExportError(
                f"'{self.name}' does not take these inputs: {error}; give them in the shapes it was made for."
            ) from error
        return found[0] if len(found) == 1 else tuple(found)

    def _array(self, name: str, value: ArrayLike) -> NDArray[Any]:
        kind = _NUMPY.get(self._types[name])
        array = np.asarray(value)
        return np.ascontiguousarray(array if kind is None else array.astype(kind, casting="same_kind", copy=False))


def open(path: str | os.PathLike[str], *, threads: int = 0) -> Network:
    """The network in a file: a .nxt saved with its graph, a packed .onnx, or an .onnx itself.

    Raises: ArtifactError when the file is damaged or carries no graph; ExportError when ONNX Runtime does not take it.
    """
    from enxuto.artifact.container import Reader
    from enxuto.artifact.graph import onnx_bytes
    from enxuto.artifact.packed import spliced

    if Path(path).suffix == ".onnx":
        return Network(os.fspath(path), Path(path).name, threads)
    with Reader(path) as reader:
        graph = spliced(reader) if reader.meta.get("packed") == "onnx" else onnx_bytes(reader)
    return Network(graph, Path(path).name, threads)
