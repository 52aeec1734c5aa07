"""Weights in 8 bits of operators that compute in float: the runtime multiplies codes and scales once, as it opens the file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enxuto.evaluation.session import Array
from enxuto.exporters.graphs import GATES, Scales, attributes, constants, drop_, floats, on_grid, sources, weights_of

LARGEST = 127
SMALLEST = 512  # numbers from which on fewer bytes are more than what the operators that decode them take


def store_(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], scales: Scales) -> None:
    """The weights of these nodes become int8 codes with a scale a channel. Cast and Mul: the runtime folds them, and decodes
    DequantizeLinear anew at each call."""
    known = floats(graph)
    axes = {
        name: _channels(node, len(known[name].dims))
        for node in nodes
        for each in weights_of(node)
        for name in sources(graph, each)
        if name in known and len(known[name].dims) > 1 and np.prod(known[name].dims) >= SMALLEST
    }
    made: list[onnx.NodeProto] = []
    for name, channels in sorted(axes.items()):
        codes, scale = _coded(constants(graph, [name])[name], channels, scales.tensors.get(name, scales.parameters.get(name)))
        drop_(graph, {name})
        graph.initializer.extend(
            [numpy_helper.from_array(codes, f"{name}_stored"), numpy_helper.from_array(scale, f"{name}_step")]
        )
        made.append(helper.make_node("Cast", [f"{name}_stored"], [f"{name}_whole"], name=f"{name}.cast", to=TensorProto.FLOAT))
        made.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_step"], [name], name=f"{name}.mul"))
    for place, node in enumerate(made):
        graph.node.insert(place, node)


def _channels(node: onnx.NodeProto, dims: int) -> tuple[int, ...]:
    """The axes along which scales differ."""
    if node.op_type in GATES:
        return tuple(range(dims - 1))
    columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transB"))
    return (dims - 1,) if columns else (0,)


def _coded(weight: Array, channels: tuple[int, ...], known: Array | None) -> tuple[Array, Array]:
    """Codes in the shape of the weight, and scales that multiply them."""
    order = [*channels, *(axis for axis in range(weight.ndim) if axis not in channels)]
    turned = weight.transpose(order)
    rows = turned.reshape(int(np.prod(turned.shape[: len(channels)])), -1)
    codes, scale = on_grid(rows, known if known is not None and known.size in (1, len(rows)) else None, LARGEST)
    back = np.argsort(order)
    shape = [weight.shape[axis] if axis in channels else 1 for axis in range(weight.ndim)]
    return np.ascontiguousarray(codes.reshape(turned.shape).transpose(back)), scale.reshape(shape)
