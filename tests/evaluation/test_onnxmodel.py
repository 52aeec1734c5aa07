"""An .onnx file used like a torch model: structures, arguments, errors, and what counts as an integer operator."""

from __future__ import annotations

import json
import pickle

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from enxuto.batches import leaves
from enxuto.errors import ExportError
from enxuto.evaluation.onnxmodel import OnnxModel, assemble, structure
from enxuto.evaluation.operators import integer_operators

TREES = st.recursive(
    st.one_of(st.none(), st.integers(0, 9).map(lambda value: torch.full((2,), value))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one is other


@given(TREES)
def test_any_returned_structure_survives_json(value):
    shape = json.loads(json.dumps(structure(value)))
    assert same(value, assemble(shape, iter(list(leaves(value)))))


class Output(dict):
    """Like the output classes of model libraries: a dict subclass read by attribute."""


def test_an_output_class_comes_back_with_its_fields_as_attributes():
    value = assemble(structure(Output(logits=torch.ones(2))), iter([torch.zeros(2)]))
    assert torch.equal(value.logits, torch.zeros(2))
    with pytest.raises(AttributeError):
        _ = value.other


@pytest.fixture
def product(tmp_path):
    """y = a - b, [batch, 3] each."""
    one, other, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "aby")
    graph = helper.make_graph([helper.make_node("Sub", ["a", "b"], ["y"])], "g", [one, other], [result])
    path = tmp_path / "sub.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_arguments_are_taken_by_name_or_in_order(product):
    model = OnnxModel(product, threads=1)
    a, b = torch.ones(2, 3), torch.full((2, 3), 3.0)
    expected = torch.full((2, 3), -2.0)
    for found in (model(a, b), model(b=b, a=a), model(a, b=b), model([a, b])):
        assert torch.equal(found, expected)


def test_it_can_be_moved_switched_and_sent_to_another_process(product):
    model = pickle.loads(pickle.dumps(OnnxModel(product)))
    assert torch.equal(model.to("cpu").train().eval()(torch.ones(1, 3), torch.ones(1, 3)), torch.zeros(1, 3))


def test_too_few_tensors_or_a_wrong_shape_is_an_export_error(product):
    model = OnnxModel(product)
    with pytest.raises(ExportError, match="takes 2 tensors"):
        model(torch.ones(2, 3))
    with pytest.raises(ExportError, match="does not run on"):
        model(torch.ones(2, 4), torch.ones(2, 4))


@pytest.mark.parametrize("data", [None, b"", b"not a graph"])
def test_a_file_that_is_no_model_is_an_export_error(data, tmp_path):
    if data is not None:
        (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(ExportError, match=r"x\.onnx"):
        OnnxModel(tmp_path / "x.onnx")


def test_arithmetic_on_shapes_is_not_counted_as_float(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Add", ["shape", "one"], ["longer"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("longer", TensorProto.INT64, [2]),
        ],
        [
            numpy_helper.from_array(torch.ones(2, dtype=torch.int64).numpy(), "one"),
            numpy_helper.from_array(torch.ones(4, 4).numpy(), "w"),
        ],
    )
    path = tmp_path / "shapes.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    found = integer_operators(path)
    assert found.integer == {}
    assert found.floating == {"MatMul": 1}
