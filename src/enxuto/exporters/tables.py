"""Tables whose rows are looked up (embeddings), in 8 bits with a scale a row, or in 4 on a grid of 4: fewer bytes, same speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from enxuto.evaluation.session import Array
from enxuto.exporters.graphs import MICROSOFT, on_grid, replace_, tidy_
from enxuto.exporters.nibbles import packed, unpacked

LARGEST = 127


def tables_in_integers_(proto: onnx.ModelProto, scales: Mapping[str, Array]) -> frozenset[str]:
    """Gather of float rows becomes Gather of int8 rows times Gather of their scales; gives the names of the nodes.

    `scales`: those, [1], [rows] or [rows, groups], of tables that lie on a grid already, by name. One whose codes need no more
    than 4 bits is read by the runtime's own operator, two codes a byte. A table that another node reads too stays.
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
            block = _store_few_(proto.graph, table, scales.get(name))
            if not block:
                _store_(proto.graph, table, scales.get(name))
            for node in nodes:
                made = _few(node, name, block) if block else _eight(node, name)
                replace_(proto.graph, {node.name: made}, {})
                changed.append(node.name)
    if changed:
        tidy_(proto)
    return frozenset(changed)


def _looks_up(node: onnx.NodeProto, name: str) -> bool:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == name and axis == 0 and name not in node.input[1:]


def _store_few_(graph: onnx.GraphProto, table: onnx.TensorProto, given: Array | None) -> int:
    """Two codes a byte and the scales of blocks in the place of a table on such a grid; the size of blocks, or 0."""
    rows = numpy_helper.to_array(table)
    if given is None or np.abs(rows).max(initial=0) == 0:
        return 0
    codes, scale, block = packed(rows, given if given.ndim == 2 else np.broadcast_to(given, len(rows)))
    width = rows.shape[1]
    if width % block or not np.allclose(unpacked(codes, scale), rows, rtol=1e-5, atol=0):
        return 0
    graph.initializer.remove(table)
    graph.initializer.append(numpy_helper.from_array(codes.reshape(len(rows), -1), f"{table.name}_nibbles"))
    graph.initializer.append(numpy_helper.from_array(scale.reshape(len(rows), -1), f"{table.name}_blocks"))
    return block


def _few(node: onnx.NodeProto, name: str, block: int) -> list[onnx.NodeProto]:
    told: dict[str, Any] = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [f"{name}_nibbles", node.input[1], f"{name}_blocks"]
    return [helper.make_node("GatherBlockQuantized", inputs, node.output, name=node.name, domain=MICROSOFT, **told)]


def _store_(graph: onnx.GraphProto, table: onnx.TensorProto, given: Array | None) -> None:
    """Codes [rows, width] and scales [rows, 1] in the place of a table."""
    rows = numpy_helper.to_array(table)
    codes, scale = on_grid(rows, given if given is not None and given.ndim < 2 else None, LARGEST)
    name = table.name
    graph.initializer.remove(table)
    graph.initializer.extend(
        [numpy_helper.from_array(codes, f"{name}_codes"), numpy_helper.from_array(scale[:, None], f"{name}_scales")]
    )


def _eight(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    places, output = node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [f"{name}_codes", places], [f"{output}_codes"], name=f"{node.name}.codes"),
        helper.make_node("Cast", [f"{output}_codes"], [f"{output}_whole"], name=f"{node.name}.whole", to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scales", places], [f"{output}_scales"], name=f"{node.name}.scales"),
        helper.make_node("Mul", [f"{output}_whole", f"{output}_scales"], [output], name=node.name),
    ]
