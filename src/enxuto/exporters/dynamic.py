"""Products and LSTMs on integers whose inputs get a grid at each call: nothing is calibrated, no sample is out of range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from enxuto.evaluation.session import Array
from enxuto.exporters.graphs import LARGEST, MICROSOFT, Scales, attributes, constants, gate_scales, matrix, on_grid

Nodes = tuple[Sequence[onnx.NodeProto], Mapping[str, Array]]


def dynamic_product(node: onnx.NodeProto, graph: onnx.GraphProto, scales: Scales) -> Nodes:
    """Operators of the standard, which the runtime fuses to one."""
    weight, output, bias = node.input[1], node.output[0], list(node.input[2:3])
    rows, scale = on_grid(matrix(node, graph), scales.tensors.get(weight), LARGEST)
    codes, step, zero, sums, whole, steps, product = (f"{node.name}.part{number}" for number in range(7))
    last = product if bias else output
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], [codes, step, zero]),
        helper.make_node("MatMulInteger", [codes, f"{weight}_columns", zero], [sums]),
        helper.make_node("Cast", [sums], [whole], to=TensorProto.FLOAT),
        helper.make_node("Mul", [step, f"{weight}_steps"], [steps]),
        helper.make_node("Mul", [whole, steps], [last]),
        *([helper.make_node("Add", [last, *bias], [output])] if bias else []),
    ]
    for number, each in enumerate(nodes):
        each.name = node.name if each is nodes[-1] else f"{node.name}.part{number}"
    return nodes, {f"{weight}_columns": np.ascontiguousarray(rows.T), f"{weight}_steps": scale}


def dynamic_lstm(node: onnx.NodeProto, graph: onnx.GraphProto, scales: Scales) -> Nodes:
    """The runtime's own operator: rows of 7 bits, as sums of 8-bit products overflow in it (measured: 20 % off; 1 % with 7)."""
    values = constants(graph, node.input[1:3])
    made: dict[str, Array] = {}
    for name, part in zip(node.input[1:3], ("ih", "hh"), strict=True):
        weight = values[name]  # [directions, gates, in]
        known = gate_scales(node, graph, part, len(weight), scales)
        codes, scale = on_grid(weight.reshape(-1, weight.shape[2]), known, LARGEST)
        made[f"{node.name}.{part}"] = np.ascontiguousarray(codes.reshape(weight.shape).transpose(0, 2, 1))
        made[f"{node.name}.{part}.scale"] = scale.reshape(weight.shape[:2])
        made[f"{node.name}.{part}.zero"] = np.zeros(weight.shape[:2], dtype=np.int8)
    rest = [*node.input[3:7], *[""] * (7 - len(node.input))]
    grids = [f"{node.name}.{part}.{what}" for part in ("ih", "hh") for what in ("scale", "zero")]
    inputs = [node.input[0], f"{node.name}.ih", f"{node.name}.hh", *rest, "", *grids]
    kept = {name: value for name, value in attributes(node).items() if name != "layout"}
    return [helper.make_node("DynamicQuantizeLSTM", inputs, node.output, name=node.name, domain=MICROSOFT, **kept)], made
