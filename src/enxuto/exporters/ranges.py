"""Value ranges of the tensors of a graph on sample inputs, and which nodes must stay float because of a mask.

A mask (-1e9, minus infinity) takes the whole range of an integer grid; what it is added to would become one code. So nothing
between a mask and the softmax is quantized, nor is any other node that touches a tensor in which masks are seen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator

from enxuto.batches import Batch, arguments
from enxuto.calibrate import SENTINEL, value_range
from enxuto.evaluation.onnxmodel import feeds
from enxuto.evaluation.session import Array, open_session
from enxuto.exporters.messages import save

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
STOPS = (
    *PRODUCTS,
    *("GlobalAveragePool", "AveragePool", "MaxPool", "Relu", "LeakyRelu", "Sigmoid", "Softmax"),
    *("LayerNormalization", "BatchNormalization", "InstanceNormalization", "LSTM", "GRU", "RNN"),
)  # what comes out of these is a layer's output, no mask


def ranges(proto: onnx.ModelProto, batches: Sequence[Batch], operators: Sequence[str]) -> tuple[TensorsData, frozenset[str]]:
    """The range of every tensor at the given operators, masks left out, and the names of the tensors that hold masks."""
    names = [item.name for item in proto.graph.input]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        save(proto, path)
        shown = os.fspath(
            Path(folder) / "ranges.onnx"
        )  # its weights in a file beside it: of one file all would be in memory twice
        calibrator = create_calibrator(path, list(operators), shown, CalibrationMethod.MinMax, use_external_data_format=True)
        calibrator.collect_data(_Reader(names, batches))
        found = calibrator.compute_data()
        del calibrator
    plain = {name: tuple(np.asarray(end).item() for end in data.range_value) for name, data in found.items()}
    large = [name for name, (low, high) in plain.items() if not (low > -SENTINEL and high < SENTINEL)]
    inner = _values(proto, large, names, batches) if large else {}
    masked = {name for name, span in inner.items() if span != plain[name]}
    for name in masked:
        low, high = (np.array([end], dtype=np.float32) for end in inner[name])
        found[name] = TensorData(lowest=low, highest=high)
    return found, frozenset(masked)


def float_nodes(graph: onnx.GraphProto, masked: frozenset[str]) -> list[str]:
    """The names of the nodes between a softmax and the products before it, and of those that touch a masked tensor."""
    made = {name: node for node in graph.node for name in node.output}
    found = {node.name for node in graph.node if masked.intersection([*node.input, *node.output])}
    waiting = [node.input[0] for node in graph.node if node.op_type in ("Softmax", "LogSoftmax")]
    seen: set[str] = set()
    while waiting:
        node = made.get(waiting.pop())
        if node is None or node.name in seen or node.op_type in STOPS:
            continue
        seen.add(node.name)
        waiting += node.input
    return sorted(found | seen)


def _values(
    proto: onnx.ModelProto, wanted: Sequence[str], names: Sequence[str], batches: Iterable[Batch]
) -> dict[str, tuple[float, float]]:
    """`value_range` of some tensors over all batches."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    there = {item.name for item in [*shown.graph.output, *shown.graph.input]}
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in there)
    session = open_session(shown.SerializeToString())
    made = [name for name in wanted if name not in names]
    found: dict[str, tuple[float, float]] = {}
    for given in _arrays(names, batches):
        values = given | dict(zip(made, session.run(made, given) if made else [], strict=True))
        for name in wanted:
            low, high = value_range(torch.from_numpy(np.ascontiguousarray(values[name])))
            before = found.get(name, (low, high))
            found[name] = (min(before[0], low), max(before[1], high))
    return found


def _arrays(names: Sequence[str], batches: Iterable[Batch]) -> Iterator[dict[str, Array]]:
    for batch in batches:
        yield feeds(names, *arguments(batch))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration batches as the quantizer wants them: one dict of arrays a call, None at the end."""

    def __init__(self, names: Sequence[str], batches: Iterable[Batch]) -> None:
        self.arrays = _arrays(names, batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.arrays, None)
