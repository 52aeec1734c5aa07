"""A graph written piece by piece has protobuf's own bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from enxuto.exporters.messages import save, size_bytes
from enxuto.exporters.onnx import to_onnx


def every_kind_of_field() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "inner",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
        [helper.make_tensor("a", TensorProto.FLOAT, [1], [0.5])],
    )
    node = helper.make_node("Odd", ["x", ""], ["y"], name="odd", domain="some.where", doc_string="é", graph=inner, f=-1.5, i=-3)
    node.attribute.append(helper.make_attribute("several", [1, -(2**40), 300]))
    node.attribute.append(helper.make_attribute("texts", ["a", "b" * 200]))
    node.attribute.append(helper.make_attribute("t", numpy_helper.from_array(np.arange(3.0))))
    constants = [
        numpy_helper.from_array(np.random.default_rng(0).normal(size=(70, 300)).astype(np.float32), "raw"),
        numpy_helper.from_array(np.zeros(0, np.float32), "none"),
        helper.make_tensor("floats", TensorProto.FLOAT, [3], [0.0, -0.0, 1e-30]),
        helper.make_tensor("numbers", TensorProto.INT64, [2], [-1, 2**50]),
        helper.make_tensor("words", TensorProto.STRING, [2], [b"\xff", b""]),
        helper.make_tensor("scalar", TensorProto.DOUBLE, [], [1.25]),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, None]) for name in ("x", "y")]
    sparse = helper.make_sparse_tensor(constants[2], numpy_helper.from_array(np.arange(3), "at"), [9])
    graph = helper.make_graph([node], "main", shapes[:1], shapes[1:], constants, "words", shapes, sparse_initializer=[sparse])
    function = helper.make_function("some.where", "Odd", ["x"], ["y"], [node], [helper.make_opsetid("", 20)], ["f"])
    model = helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 20)], producer_name="")
    helper.set_model_props(model, {"key": "value", "empty": ""})
    return model


@pytest.mark.parametrize("proto", [every_kind_of_field(), onnx.ModelProto()], ids=["every kind", "empty"])
def test_the_bytes_are_those_of_protobuf(tmp_path, proto):
    save(proto, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == proto.SerializeToString()
    assert size_bytes(proto) == proto.ByteSize()


def test_so_are_those_of_a_network(tmp_path):
    to_onnx(torch.nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3), tmp_path / "a.onnx")
    proto = onnx.load(tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == proto.SerializeToString()
