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
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from enxuto.evaluation.fresh import in_fresh_process
from enxuto.evaluation.session import Array, open_session

if TYPE_CHECKING:
    from enxuto.batches import Batch

_RUNS = 3  # the runtime plans its arena in the first run and settles in the second
_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: sets the peak resident size to the present one


def peak_memory(path: str | os.PathLike[str], sample: Batch) -> int:
    """Bytes of resident memory that loading the file and running one row of the sample adds at the peak, one thread.

    Libraries, the runtime itself and the input are loaded before and do not count. On Linux the peak is the kernel's
    own (VmHWM, reset before the file is opened); elsewhere it is the growth of `ru_maxrss`, which can only be too
    small. Every file has a floor of about 0.8 MB: what the runtime keeps for a session of any size.
    Raises: ExportError when the file does not run.
    """
    from enxuto.evaluation.onnxmodel import first_row_arrays  # brings torch, which the fresh process does without

    return in_fresh_process(_peak, os.fspath(path), first_row_arrays(path, sample))


def _peak(path: str, arrays: dict[str, Array]) -> int:
    _warm_up()
    give_back_free_memory()
    reset_peak()
    before = peak_bytes()
    session = open_session(path, threads=1)
    for _ in range(_RUNS):
        session.run(None, arrays)
    return max(0, peak_bytes() - before)


def give_back_free_memory() -> None:
    """Lets the allocator return what it holds for later, which the model would otherwise use unseen (glibc only)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Sets the kernel's peak to the present size, where there is such a thing."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text(_RESET_PEAK)


def peak_bytes() -> int:
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
        open_session(path, threads=1).run(None, {"x": np.ones(shape, dtype=np.float32)})
