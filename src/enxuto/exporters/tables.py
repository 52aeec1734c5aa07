"""Tables whose rows are looked up (embeddings), in 8 bits with a scale a row: a quarter of the bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

LARGEST = 127
SMALLEST_SCALE = 1e-30


def tables_in_integers_(proto: onnx.ModelProto, scales: Mapping[str, Tensor]) -> frozenset[str]:
    """Gather of float rows becomes Gather of int8 rows times Gather of their scales; gives the names of the nodes.

    `scales`: those, [1] or [rows], of tables that lie on a grid already, by name. A table that another node reads too stays.
    """
    floats = {item.name: item for item in proto.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    changed: list[str] = []
    for name, table in floats.items():
        nodes = readers.get(name, [])
        if len(table.dims) == 2 and nodes and all(_looks_up(node, name) for node in nodes):
            _store_(proto.graph, table, scales.get(name))
            for node in nodes:
                _look_up_(proto.graph, node, name)
                changed.append(node.name)
    return frozenset(changed)


def _looks_up(node: onnx.NodeProto, name: str) -> bool:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == name and axis == 0 and name not in node.input[1:]


def _store_(graph: onnx.GraphProto, table: onnx.TensorProto, given: Tensor | None) -> None:
    """Codes [rows, width] and scales [rows, 1] in the place of a table."""
    rows = numpy_helper.to_array(table)
    scale = np.maximum(np.abs(rows).max(1, keepdims=True) / LARGEST, SMALLEST_SCALE).astype(np.float32)
    if given is not None:
        scale = np.broadcast_to(given.detach().cpu().float().numpy().reshape(-1, 1), scale.shape).copy()
    codes = np.clip(np.rint(rows / scale), -LARGEST, LARGEST).astype(np.int8)
    name = table.name
    graph.initializer.remove(table)
    graph.initializer.extend([numpy_helper.from_array(codes, f"{name}_codes"), numpy_helper.from_array(scale, f"{name}_scales")])


def _look_up_(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> None:
    places, output = node.input[1], node.output[0]
    made = [
        helper.make_node("Gather", [f"{name}_codes", places], [f"{output}_codes"], name=f"{node.name}.codes"),
        helper.make_node("Cast", [f"{output}_codes"], [f"{output}_whole"], name=f"{node.name}.whole", to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scales", places], [f"{output}_scales"], name=f"{node.name}.scales"),
        helper.make_node("Mul", [f"{output}_whole", f"{output}_scales"], [output], name=node.name),
    ]
    index = next(number for number, each in enumerate(graph.node) if each is node or each.name == node.name)
    del graph.node[index]
    for offset, each in enumerate(made):
        graph.node.insert(index + offset, each)
