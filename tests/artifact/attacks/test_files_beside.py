"""Graphs whose weights are said to be in other files: whoever sends one could read what lies beside the process."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from enxuto import runtime
from enxuto.artifact.container import read, write
from enxuto.artifact.graph import GRAPH
from enxuto.artifact.pack import pack, unpack
from enxuto.artifact.protobuf import file_beside
from enxuto.artifact.sections import Section
from enxuto.errors import ArtifactError, Error, ExportError
from enxuto.evaluation.onnxmodel import OnnxModel

SECRET = b"0123456789abcdef"


def outside(location="secret.txt"):
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def inside():
    return helper.make_tensor("w", TensorProto.UINT8, [16], SECRET, raw=True)


def model(tensor, place="initializer"):
    """x + w, with the tensor in one of the places where ONNX has tensors."""
    initializers = [tensor] if place == "initializer" else []
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)] if place == "constant" else []
    nodes += [helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "f"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy"]
    if place == "branch":
        out = [helper.make_tensor_value_info("b", TensorProto.UINT8, [16])]
        cast = [helper.make_node("Identity", ["w"], ["b"])]
        body = helper.make_graph(cast, "body", [], out, [tensor])
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        choice = helper.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body)
        nodes = [choice, helper.make_node("Cast", ["chosen"], ["f"], to=TensorProto.FLOAT), nodes[-1]]
        initializers = [yes]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


PLACES = ("initializer", "constant", "branch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_bytes(SECRET)
    return tmp_path


def in_a_graph(data, path):
    letters = np.frombuffer(data, np.uint8)
    meta = {"edits": [], "graph": {"gaps": [len(data)], "constants": []}}
    write(path, meta, [Section(GRAPH, "uint8", letters.shape, None, letters)])


def packed(path, out):
    """An honest file, packed, whose bytes are then those of another."""
    data = path.read_bytes()
    letters = np.frombuffer(data, np.uint8)
    write(
        out,
        {"packed": "onnx", "name": "x.onnx", "gaps": [len(data)]},
        [Section("(between the tensors)", "uint8", letters.shape, None, letters)],
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["secret.txt", "./secret.txt", "../secret.txt", "/etc/passwd"])
def test_no_file_beside_a_graph_is_read(location, place, folder):
    onnx_file, nxt, pack_ = folder / "x.onnx", folder / "x.nxt", folder / "p.nxt"
    onnx_file.write_bytes(model(outside(location), place).SerializeToString())
    in_a_graph(onnx_file.read_bytes(), nxt)
    packed(onnx_file, pack_)
    for path in (onnx_file, nxt, pack_):
        with pytest.raises(
            ExportError, match=f"keeps a tensor in '{location}', which enxuto does not read; write the model as one"
        ):
            runtime.open(path)
    with pytest.raises(ExportError, match="keeps a tensor in"):
        OnnxModel(onnx_file)
    with pytest.raises(ArtifactError, match="keeps a tensor in"):
        pack(onnx_file, folder / "q.nxt")
    with pytest.raises(ArtifactError, match="keeps a tensor in"):
        unpack(pack_, folder / "back.onnx")
    assert sorted(os.listdir(folder)) == ["p.nxt", "secret.txt", "x.nxt", "x.onnx"]


@pytest.mark.parametrize("place", PLACES)
def test_a_graph_that_holds_its_tensors_is_run(place, folder):
    onnx_file = folder / "x.onnx"
    onnx_file.write_bytes(model(inside(), place).SerializeToString())
    in_a_graph(onnx_file.read_bytes(), folder / "x.nxt")
    pack(onnx_file, folder / "p.nxt")
    for path in (onnx_file, folder / "x.nxt", folder / "p.nxt"):
        assert runtime.open(path)(np.zeros(16, np.float32)).astype(np.uint8).tobytes() == SECRET
    unpack(folder / "p.nxt", folder / "back.onnx")
    assert (folder / "back.onnx").read_bytes() == onnx_file.read_bytes()
    assert read(folder / "p.nxt")[0]["packed"] == "onnx"


def test_a_tensor_that_says_so_without_a_name_is_found():
    tensor = TensorProto(name="w", data_location=TensorProto.EXTERNAL)
    assert file_beside(model(tensor).SerializeToString()) == "another file"
    tensor = TensorProto(name="w")
    tensor.external_data.add(key="location", value="here")
    assert file_beside(model(tensor).SerializeToString()) == "'here'"


def test_every_field_in_which_onnx_keeps_tensors_is_looked_into():
    """Walks the messages of the onnx package itself: each way from a model to a tensor is in the table."""
    from enxuto.artifact.protobuf import _INSIDE

    names = {"ModelProto": "model", "TrainingInfoProto": "training", "GraphProto": "graph", "FunctionProto": "function"}
    names |= {"NodeProto": "node", "AttributeProto": "attribute", "SparseTensorProto": "sparse", "TensorProto": "tensor"}
    for message, name in names.items():
        descriptor = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name[message]
        ways = {
            f.number: names[f.message_type.name] for f in descriptor.fields if f.message_type and f.message_type.name in names
        }
        assert _INSIDE.get(name, {}) == ways


@pytest.mark.parametrize("data", [b"\x10\0\0\0ORTM", b"\x1b\x00", b"\x3a\xff\x01", b"\x00\x00", b"\x3a" + b"\xff" * 9 + b"\x7f"])
def test_what_is_no_model_is_refused(data, folder):
    (folder / "x.onnx").write_bytes(data)
    with pytest.raises(Error):
        runtime.open(folder / "x.onnx")
    in_a_graph(data, folder / "x.nxt")
    with pytest.raises(ExportError, match="no readable ONNX file"):
        runtime.open(folder / "x.nxt")


def test_a_deep_nest_of_graphs_is_walked_without_recursion():
    def held(field, content):
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([field << 3 | 2]) + length + bytes([size]) + content

    data = held(5, outside().SerializeToString())
    while len(data) < 60_000:
        data = held(1, held(5, held(6, data)))  # a graph in an attribute of a node of a graph
    assert file_beside(held(7, data)) == "'secret.txt'"
