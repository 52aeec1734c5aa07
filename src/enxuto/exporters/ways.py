"""How an operator with a weight is computed in a small file: the ways there are, from the fastest to the most exact.

static: on integers, inputs on a grid that was calibrated. four: weights of 4 bits in blocks, by the runtime's own operator.
dynamic: on integers, inputs on a grid of each call. stored: weights of 8 bits, computed in float. float: as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import onnx

from enxuto.evaluation.session import Array
from enxuto.exporters.dynamic import dynamic_lstm, dynamic_product
from enxuto.exporters.graphs import Scales, attributes, floats, path_of, replace_, sources, tidy_, weights_of
from enxuto.exporters.nibbles import four
from enxuto.exporters.stored import store_

Way = Literal["static", "four", "dynamic", "stored", "float"]
PRODUCTS = ("Conv", "Gemm", "MatMul")  # operators with a weight as second input, and an integer kernel
PRODUCT: tuple[Way, ...] = ("static", "four", "dynamic", "stored", "float")
WEIGHTED: Mapping[str, tuple[Way, ...]] = {
    "Conv": ("static", "stored", "float"),  # on integers with a range of each call it is slower than in float
    "Gemm": PRODUCT,
    "MatMul": PRODUCT,
    "LSTM": ("dynamic", "stored", "float"),
    "GRU": ("stored", "float"),
    "RNN": ("stored", "float"),
    "ConvTranspose": ("stored", "float"),
    "Einsum": ("stored", "float"),
}
INTEGER = (
    *PRODUCTS,
    *("Add", "Sub", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid", "GlobalAveragePool", "AveragePool"),
    *("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Split", "Slice", "Pad"),
)
"""Operators that can be on integers between others that are."""
ORDERS: Mapping[str, tuple[Way, ...]] = {
    "int8": ("static", "dynamic", "stored", "float"),
    "int8-dynamic": ("dynamic", "stored", "float"),
    "int4": ("four", "dynamic", "stored", "float"),
}
"""The ways that each precision takes, the first that an operator has."""
Write = Callable[[onnx.NodeProto, onnx.GraphProto, Scales], tuple[Sequence[onnx.NodeProto], Mapping[str, Array]]]
WRITERS: Mapping[tuple[str, Way], Write] = {
    **{(kind, "dynamic"): dynamic_product for kind in ("Gemm", "MatMul")},
    **{(kind, "four"): four for kind in ("Gemm", "MatMul")},
    ("LSTM", "dynamic"): dynamic_lstm,
}


def ways(graph: onnx.GraphProto, precision: str) -> dict[str, tuple[Way, ...]]:
    """The ways of each operator that can be on integers or has a weight, by the name of its node, from the fastest."""
    known = floats(graph)
    return {
        node.name: tuple(way for way in ORDERS[precision] if way in _possible(node, graph, known))
        for node in graph.node
        if node.op_type in WEIGHTED or node.op_type in INTEGER
    }


def _possible(node: onnx.NodeProto, graph: onnx.GraphProto, known: Mapping[str, onnx.TensorProto]) -> tuple[Way, ...]:
    able = WEIGHTED.get(node.op_type, ("static", "float"))
    if node.op_type in WEIGHTED and not any(sources(graph, name) for name in weights_of(node)):
        return tuple(way for way in able if way in ("static", "float"))
    if able == PRODUCT and not _plain_product(node, known):
        return tuple(way for way in able if way not in ("dynamic", "four"))
    if node.op_type == "LSTM" and not _plain_lstm(node, graph):
        return tuple(way for way in able if way != "dynamic")
    return able


def _plain_product(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """True for inputs times a matrix of the file, plus perhaps a bias."""
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0} | attributes(node)
    plain = (given["alpha"], given["beta"], given["transA"]) == (1.0, 1.0, 0)
    return plain and node.input[1] in known and len(known[node.input[1]].dims) == 2


def _plain_lstm(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    peepholes = len(node.input) > 7 and node.input[7]
    return not attributes(node).get("layout") and not peepholes and all(sources(graph, name) for name in node.input[1:3])


def write_(proto: onnx.ModelProto, chosen: Mapping[str, Way], scales: Scales) -> None:
    """Each node of these names is computed its way; those that are static or float stay as they are."""
    changed: dict[str, Sequence[onnx.NodeProto]] = {}
    made: dict[str, Array] = {}
    for node in proto.graph.node:
        if write := WRITERS.get((node.op_type, chosen.get(node.name, "float"))):
            changed[node.name], values = write(node, proto.graph, scales)
            made |= values
    replace_(proto.graph, changed, made)
    store_(proto.graph, [node for node in proto.graph.node if chosen.get(node.name) == "stored"], scales)
    tidy_(proto)


def without_kernel(graph: onnx.GraphProto, chosen: Mapping[str, Way]) -> list[str]:
    """A note for each layer whose operator integers do not compute; one for a layer of several nodes."""
    kinds = {
        path_of(node): node.op_type
        for node in graph.node
        if chosen.get(node.name) == "stored" and not {"static", "dynamic"}.intersection(WEIGHTED[node.op_type])
    }
    words = "stays float, its weights in 8 bits: ONNX Runtime has no integer operator for"
    return [f"'{path}' {words} {kind}" for path, kind in kinds.items()]
