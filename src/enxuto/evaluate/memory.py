"""How much memory loading and running an .onnx file takes, seen by the operating system in a fresh process."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from enxuto.errors import ExportError
from enxuto.evaluate.fresh import in_fresh_process
from enxuto.evaluate.latency import bound_call
from enxuto.evaluate.onnxmodel import OnnxModel
from enxuto.task import Batch

_RUNS = 3  # the runtime plans its arena in the first run and settles in the second
_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: sets the peak resident size to the present one


def peak_memory(path: str | os.PathLike[str], sample: Batch) -> int:
    """Bytes of resident memory that loading the file and running it on the sample adds at the peak, one thread.

    Libraries, the runtime itself and the input are loaded before and do not count. On Linux the peak is the kernel's
    own (VmHWM, reset before the file is opened); elsewhere it is the growth of `ru_maxrss`, which can only be too
    small. Granularity is the page and the allocator's block: differences below about 0.2 MB mean nothing.
    Raises: ExportError when the file does not run.
    """
    return in_fresh_process(_peak, os.fspath(path), sample)


def _peak(path: str, sample: Batch) -> int:
    _warm_up()
    if not Path(path).is_file():
        raise ExportError(f"'{path}' is not a file; export the model first.")
    _give_back_free_memory()
    _reset_peak()
    before = _peak_bytes()
    call = bound_call(OnnxModel(path, threads=1), sample)
    for _ in range(_RUNS):
        call()
    return max(0, _peak_bytes() - before)


def _give_back_free_memory() -> None:
    """Lets the allocator return what it holds for later, which the model would otherwise use unseen (glibc only)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> None:
    """Sets the kernel's peak to the present size, where there is such a thing."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text(_RESET_PEAK)


def _peak_bytes() -> int:
    """The largest resident size of this process since the last reset."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _warm_up() -> None:
    """Runs a graph of one matrix product, so that the runtime's own memory is there before the count starts."""
    shape = [1, 8]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "warm_up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [8, 8], [0.5] * 64)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "warm.onnx")
        onnx.save_model(model, path)
        OnnxModel(path, threads=1).session.run(None, {"x": np.ones(shape, dtype=np.float32)})
