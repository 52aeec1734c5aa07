"""An ONNX graph being rewritten: its constants, nodes in the place of a node, weights as codes, and nothing that nobody reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enxuto.evaluation.session import Array, open_session

MICROSOFT = "com.microsoft"
OPSET, IR = 20, 10
LARGEST = 64  # of a code that a product on integers reads: 7 bits (ADR 2)
OFF = 1e-2  # of a step, by which a value may miss its grid: products of float32 numbers do
SMALLEST_SCALE = 1e-30
GATES: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of torch's gates each of ONNX's is."""


@dataclass(frozen=True)
class Scales:
    """The grids that weights are known to lie on."""

    tensors: Mapping[str, Array] = field(default_factory=dict)  # [out] or [out, groups] of an initializer's channels, by its name
    parameters: Mapping[str, Array] = field(default_factory=dict)  # [1] or [out], by the parameter's name in torch


def path_of(node: onnx.NodeProto) -> str:
    """The layer that `to_onnx` wrote into the node's name."""
    path: str = node.name.rpartition("/")[0]
    return path


def parameter(node: onnx.NodeProto, name: str) -> str:
    """The name in torch of a parameter of a node's layer."""
    path = path_of(node)
    return f"{path}.{name}" if path else name


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name and value of each."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def weights_of(node: onnx.NodeProto) -> Sequence[str]:
    """The inputs of a node that may be weights."""
    return node.input[1:3] if node.op_type in GATES else node.input if node.op_type == "Einsum" else node.input[1:2]


def floats(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The float32 initializers by name."""
    return {item.name: item for item in graph.initializer if item.data_type == TensorProto.FLOAT}


def sources(graph: onnx.GraphProto, name: str) -> frozenset[str]:
    """The initializers that a tensor is computed from; none where an input of the graph takes part."""
    made = {output: node for node in graph.node for output in node.output}
    kept = {item.name for item in graph.initializer}
    found, waiting, seen = set(), [name], set()
    while waiting:
        each = waiting.pop()
        if each in seen or not each:
            continue
        seen.add(each)
        if each in kept:
            found.add(each)
        elif each in made:
            waiting += made[each].input
        else:
            return frozenset()
    return frozenset(found)


def constants(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, Array]:
    """The values of tensors that are computed from initializers alone, by name."""
    kept = {item.name: item for item in graph.initializer}
    found = {name: numpy_helper.to_array(kept[name]) for name in names if name in kept}
    left = [name for name in names if name not in kept]
    if left:
        outputs = [helper.make_empty_tensor_value_info(name) for name in left]
        needed = [kept[name] for name in sorted(set().union(*(sources(graph, name) for name in left)))]
        part = helper.make_graph(_before(graph, left), "constants", [], outputs, needed)
        whole = helper.make_model(part, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        found |= dict(zip(left, open_session(whole.SerializeToString()).run(left, {}), strict=True))
    return found


def _before(graph: onnx.GraphProto, names: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that tensors are computed by, in their order, which need not be that of computation."""
    made = {output: node for node in graph.node for output in node.output}
    waiting, needed = list(names), set()
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            waiting += node.input
    return [node for node in graph.node if node.output[0] in needed]


def matrix(node: onnx.NodeProto, graph: onnx.GraphProto) -> Array:
    """The weight of a product. Shapes: [out, in]."""
    values = constants(graph, [node.input[1]])[node.input[1]]
    return values if attributes(node).get("transB") else values.T


def gate_scales(node: onnx.NodeProto, graph: onnx.GraphProto, part: str, directions: int, scales: Scales) -> Array | None:
    """The scales of the rows of a recurrent weight, "ih" or "hh", where all are known. Shapes: [directions * gates]."""
    several = [each.name for each in graph.node if each.op_type == node.op_type and path_of(each) == path_of(node)]
    names = [f"weight_{part}_l{several.index(node.name)}{end}" for end in ("", "_reverse")[:directions]]
    found = [scales.parameters.get(parameter(node, name)) for name in names]
    order = list(GATES[node.op_type])
    rows = [each.reshape(len(order), -1)[order].ravel() for each in found if each is not None and each.size % len(order) == 0]
    return np.concatenate(rows) if len(rows) == directions else None


def on_grid(rows: Array, scale: Array | None, largest: int) -> tuple[Array, Array]:
    """int8 codes and float32 scales of rows: on the given scales where all values lie on them, else from the largest of each.

    Shapes: rows [n, in], scale [n] or [1] or None -> [n, in], [n].
    """
    if scale is not None:
        scale = np.broadcast_to(scale.astype(np.float32), len(rows))
        codes = rows / np.where(scale > 0, scale, 1)[:, None]
        whole = np.rint(codes)
        if np.abs(codes - whole).max(initial=0) <= OFF and np.abs(whole).max(initial=0) <= largest:
            return whole.astype(np.int8), np.ascontiguousarray(scale)
    scale = np.maximum(np.abs(rows).max(1, initial=0) / largest, SMALLEST_SCALE).astype(np.float32)
    return np.clip(np.rint(rows / scale[:, None]), -largest, largest).astype(np.int8), scale


def replace_(graph: onnx.GraphProto, changed: Mapping[str, Sequence[onnx.NodeProto]], made: Mapping[str, Array]) -> None:
    """Puts nodes in the place of those with these names, and adds the initializers they read."""
    nodes = [each for node in graph.node for each in changed.get(node.name, [node])]
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]  # those of the graph go with the old list
    del graph.node[:]
    graph.node.extend(copies)
    there = {item.name for item in graph.initializer}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items() if name not in there)


def tidy_(proto: onnx.ModelProto) -> None:
    """Drops nodes and initializers that no output needs, and names the domain of the runtime's own operators if one is there."""
    graph = proto.graph
    outputs = [item.name for item in graph.output]
    kept = {node.name for node in _before(graph, outputs)}
    needed = {name for node in graph.node if node.name in kept for name in node.input}.union(outputs)
    for index in reversed(range(len(graph.node))):
        if graph.node[index].name not in kept:
            del graph.node[index]
    drop_(graph, {item.name for item in graph.initializer} - needed)
    known = {item.domain for item in proto.opset_import}
    if MICROSOFT not in known and any(node.domain == MICROSOFT for node in graph.node):
        proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def drop_(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Deletes initializers, one by one: a list of the others would be a copy of all weights."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]
