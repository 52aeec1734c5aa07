"""Where an int8 file puts its grids: between integers, and nowhere else."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.operators import integer_operators
from enxuto.exporters import export
from toys import Block, Mlp, inputs, output, seeded


class Image(nn.Module):
    """Ends in a convolution and its relu, and in a sum of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        return y, x + y


@pytest.mark.parametrize("kind", [Mlp, Block])
def test_what_a_product_gives_to_nobody_on_integers_is_not_rounded(kind, tmp_path):
    model, x = seeded(kind), inputs(kind)
    export(model, tmp_path / "m.onnx", calibration=[x], precision="int8")
    found = OnnxModel(tmp_path / "m.onnx")(x)
    graph = onnx.load(tmp_path / "m.onnx").graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    assert [made[item.name] for item in graph.output] == ["Gemm"]
    assert float((found - output(model, x)).norm() / output(model, x).norm()) < 0.02


def test_a_residual_stream_that_norms_read_stays_float(tmp_path):
    export(seeded(Block), tmp_path / "m.onnx", calibration=[inputs(Block)], precision="int8")
    found = integer_operators(tmp_path / "m.onnx")
    assert found.integer["QLinearAdd"] == 0
    assert not {"MatMul", "Gemm"} & set(found.floating)


def test_a_relu_at_the_end_goes_with_its_convolution_and_a_sum_does_not(tmp_path):
    torch.manual_seed(0)
    model, x = Image().eval(), torch.randn(4, 3, 8, 8)
    export(model, tmp_path / "m.onnx", calibration=[x], precision="int8")
    found = integer_operators(tmp_path / "m.onnx")
    assert found.integer == {"QLinearConv": 2}
    assert found.floating == {"Add": 1}
    for one, other in zip(OnnxModel(tmp_path / "m.onnx")(x), model(x), strict=True):
        assert float((one - other).detach().norm() / other.detach().norm()) < 0.02
