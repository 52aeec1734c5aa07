"""Which operators of an .onnx file run on integers, read from the graph as ONNX Runtime has optimised it.

The exported graph says nothing about that: Q/DQ pairs fuse only if all neighbours of an operator are quantized too.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from enxuto.evaluation.session import open_session

INTEGER = frozenset(
    {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    | {"QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool"}
    | {"QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere", "QAttention"}
    | {"QEmbedLayerNormalization", "DynamicQuantizeLSTM", "MatMulNBits", "NhwcMaxPool"}
)
FLOATING = frozenset(
    {"Conv", "ConvTranspose", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "Mul"}
    | {"Attention", "MultiHeadAttention", "LSTM", "GRU", "RNN", "GlobalAveragePool", "AveragePool", "Concat"}
)


@dataclass(frozen=True)
class Operators:
    """Operators of an optimised graph by type: those on integers, and those with arithmetic that stayed in float."""

    integer: Counter[str]
    floating: Counter[str]


def integer_operators(path: str | os.PathLike[str]) -> Operators:
    """The fused integer operators and the arithmetic left in float in the graph that ONNX Runtime runs.

    Operators on shapes (int64) are not arithmetic on data and count as neither.
    Raises: ExportError when the runtime does not take the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, threads=1, optimized=os.fspath(optimized))
        graph = onnx.load(os.fspath(optimized)).graph
    whole = {item.name for item in graph.initializer if item.data_type == onnx.TensorProto.INT64}
    shapes = whole | {name for node in graph.node if node.op_type == "Shape" for name in node.output}
    for node in graph.node:  # in topological order: what is computed from shapes is a shape
        if any(node.input) and all(name in shapes for name in node.input if name):
            shapes.update(node.output)
    kinds = [node.op_type for node in graph.node if not all(name in shapes for name in node.output)]
    return Operators(
        integer=Counter(kind for kind in kinds if kind in INTEGER),
        floating=Counter(_plain(kind) for kind in kinds if kind in FLOATING),
    )


def _plain(kind: str) -> str:
    return kind.removeprefix("Nhwc").removeprefix("Fused")
