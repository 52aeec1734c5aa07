"""A bare ONNX Runtime session on arrays. No torch here: a fresh process that only runs files starts at once."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from enxuto.artifact.protobuf import refuse_files_beside
from enxuto.errors import ArtifactError, ExportError

RUNTIME_ERRORS = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoModel,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
"""What ONNX Runtime raises; they share no parent but Exception."""

Array = npt.NDArray[Any]


def open_session(path: str | os.PathLike[str] | bytes, *, threads: int = 0, optimized: str = "") -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with all optimizations, of a file or of its bytes.

    `threads` = 0 leaves the number to the runtime; `optimized` names a file that receives the optimised graph.
    Raises: ExportError when the file is missing or the runtime does not take it or would read other files for it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; what it logs besides says nothing a user could act on
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    _refuse_files_beside(path)
    if optimized:
        options.optimized_model_filepath = optimized
    try:
        return onnxruntime.InferenceSession(
            path if isinstance(path, bytes) else os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except RUNTIME_ERRORS as error:
        name = "the graph" if isinstance(path, bytes) else f"'{Path(path).name}'"
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} does not open {name}: {error}; "
            "export the model again, or change the layer the message names."
        ) from error


def _refuse_files_beside(path: str | os.PathLike[str] | bytes) -> None:
    """Raises ExportError when the model keeps tensors in other files; or is no ONNX model."""
    try:
        if isinstance(path, bytes):
            refuse_files_beside(path, "the graph")
        elif Path(path).is_file() and Path(path).stat().st_size:
            with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                refuse_files_beside(data, Path(path).name)
    except ArtifactError as error:
        raise ExportError(str(error)) from error
