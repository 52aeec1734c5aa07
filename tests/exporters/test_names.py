"""What the outputs of an .onnx file are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from enxuto.errors import ExportError
from enxuto.evaluation.session import open_session
from enxuto.exporters import export
from enxuto.exporters.names import name_outputs_


class Two(nn.Module):
    def __init__(self, give: Callable[[Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.give = nn.Linear(8, 8), nn.Linear(8, 4), give

    def forward(self, x: Tensor) -> object:
        hidden = self.a(x).relu()
        return self.give(x, hidden, self.b(hidden))


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda x, hidden, y: {"relu": y, "linear_1": hidden, "x": hidden.sum(1)}, ["relu", "linear_1", "x.1"]),
        (lambda x, hidden, y: {"a": (y, hidden), "b": {"c": hidden, "same": hidden}}, ["a.0", "a.1", "b.c", "b.same"]),
        (lambda x, hidden, y: (y, hidden), ["linear_1", "relu"]),
    ],
    ids=["clash", "nested", "tuple"],
)
def test_outputs_have_the_names_that_the_model_gives_them(give: Callable[..., object], names: list[str], tmp_path: Path) -> None:
    export(Two(give), tmp_path / "two.int8.onnx", calibration=[torch.randn(16, 8)], precision="int8")
    session = open_session(tmp_path / "two.int8.onnx")
    assert [item.name for item in session.get_outputs()] == names
    assert [item.name for item in session.get_inputs()] == ["x"]


def test_values_in_branches_are_renamed_too() -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])

    then = helper.make_graph([helper.make_node("Neg", ["h"], ["out"])], "then", [], [value("out")])
    other = helper.make_graph([helper.make_node("Abs", ["h"], ["same"])], "other", [], [value("same")])
    nodes = [
        helper.make_node("Exp", ["x"], ["h"]),
        helper.make_node("If", ["test"], ["y"], then_branch=then, else_branch=other),
    ]
    test = helper.make_tensor_value_info("test", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "graph", [value("x"), test], [value("y"), value("h"), value("h")])
    name_outputs_(graph, ["out", "hidden", "again"])
    onnx.checker.check_model(helper.make_model(graph), full_check=True)
    assert [item.name for item in graph.output] == ["out", "hidden", "again"]
    assert {item.g.node[0].input[0] for item in nodes[1].attribute} == {"h"}, "the parts that were given are copied"
    assert {item.g.node[0].input[0] for item in graph.node[1].attribute} == {"hidden"}


def test_a_packed_sequence_is_refused_with_what_would_work(tmp_path: Path) -> None:
    packed = pack_sequence([torch.randn(length, 8) for length in (5, 2)])
    with pytest.raises(ExportError, match=r"LSTM takes packed sequences.* give padded tensors"):
        export(nn.LSTM(8, 4), tmp_path / "packed.onnx", calibration=[packed])
