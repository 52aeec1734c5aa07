"""The int8 .onnx file: every operator on integers, outputs close, grids that were given kept exactly."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.errors import ExportError
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.operators import integer_operators
from enxuto.exporters import export
from enxuto.exporters.int8 import quantize_onnx
from enxuto.exporters.onnx import to_onnx


class Residual(nn.Module):
    """Convolutions with batch norm, a residual add, a projection, a concatenation, a mean and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.short = nn.Conv2d(16, 32, 1, stride=2)
        self.side = nn.Conv2d(32, 8, 1)
        self.fc = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.down(x) + self.short(x))
        x = torch.cat([x, F.relu(self.side(x))], 1)
        return self.fc(x.mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2: widen, ReLU6, depthwise, ReLU6, narrow, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.widen = nn.Sequential(nn.Conv2d(8, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(48, 48, 3, 1, 1, groups=48, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.narrow = nn.Sequential(nn.Conv2d(48, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(self.deep(self.widen(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def with_statistics(model: nn.Module) -> nn.Module:
    """The model with batch norms that have seen data, one of its channels negative."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[0] *= -1
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 16, 16, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A residual net whose weights lie on 7-bit grids, as .onnx, with those grids."""
    model = with_statistics(Residual())
    scales = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.data
            size = weight.abs().flatten(1).amax(1) if path != "down" else weight.abs().max().reshape(1)
            scales[f"{path}.weight"] = size / 63
            shape = (-1, *[1] * (weight.dim() - 1))
            weight.copy_((weight / scales[f"{path}.weight"].view(shape)).round() * scales[f"{path}.weight"].view(shape))
    path = tmp_path_factory.mktemp("residual") / "float.onnx"
    to_onnx(model, batches()[0], path)
    return model, path, scales


def relative_error(model: nn.Module, path) -> float:
    x = torch.cat(batches())
    with torch.no_grad():
        before = model(x)
    after = OnnxModel(path)(x)
    return float((after - before).square().sum() / before.square().sum())


def test_every_convolution_and_residual_add_runs_on_integers(residual, tmp_path):
    model, path, _ = residual
    quantized = quantize_onnx(path, tmp_path / "int8.onnx", batches())
    found = integer_operators(tmp_path / "int8.onnx")
    expected = {"QLinearConv": 6, "QLinearAdd": 2, "QLinearConcat": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert found.integer == expected
    assert found.floating == {}
    assert quantized.notes == ()
    before = integer_operators(path)
    assert before.integer == {}
    assert before.floating["Conv"] == 6
    assert relative_error(model, tmp_path / "int8.onnx") < 2e-3


def test_a_mobile_net_runs_on_integers_down_to_the_depthwise_convolution(tmp_path):
    model = with_statistics(Inverted())
    to_onnx(model, batches()[0], tmp_path / "float.onnx")
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", batches())
    found = integer_operators(tmp_path / "int8.onnx")
    assert found.integer == {"QLinearConv": 4, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert found.floating == {}
    assert relative_error(model, tmp_path / "int8.onnx") < 5e-3


def test_given_weight_scales_are_in_the_file_exactly_also_behind_a_batch_norm(residual, tmp_path):
    model, path, scales = residual
    parameters = dict(model.named_parameters())
    quantized = quantize_onnx(path, tmp_path / "int8.onnx", batches(), weight_scales=scales, parameters=parameters)
    assert quantized.kept == tuple(sorted(scales))
    assert quantized.notes == ()
    stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    floats = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    for name, scale in scales.items():
        codes, kept = (torch.from_numpy(stored[f"{name}_{what}"].copy()) for what in ("quantized", "scale"))
        shape = (-1, *[1] * (codes.dim() - 1))
        torch.testing.assert_close(codes * kept.view(shape), torch.from_numpy(floats[name].copy()), rtol=1e-5, atol=1e-7)
        if name != "stem.weight":  # whose batch norm was folded into weight and scale
            assert torch.equal(kept.reshape(-1), scale.expand(len(kept)))
    assert integer_operators(tmp_path / "int8.onnx").floating == {}


def test_given_input_grids_are_those_of_the_tensors_that_enter_the_layers(residual, tmp_path):
    _, path, _ = residual
    quantize_onnx(path, tmp_path / "int8.onnx", batches(), input_grids={"conv2": (0.03125, 7), "fc": (0.0625, 0)})
    graph = onnx.load(tmp_path / "int8.onnx").graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    nodes = {node.name: node for node in graph.node}
    for name, scale, zero_point in (("conv2/Conv", 0.03125, 7), ("fc/Gemm", 0.0625, 0)):
        dequantize = made[nodes[name].input[0]]
        assert (stored[dequantize.input[1]], stored[dequantize.input[2]]) == (scale, zero_point)


def test_a_grid_of_eight_bits_is_kept_only_when_eight_bits_are_asked_for(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4))
    scale = model[0].weight.detach().abs().amax(1) / 127
    with torch.no_grad():
        model[0].weight.copy_((model[0].weight / scale[:, None]).round() * scale[:, None])
    x = torch.randn(16, 8)
    to_onnx(model, x, tmp_path / "float.onnx")
    seven = quantize_onnx(tmp_path / "float.onnx", tmp_path / "a.onnx", [x], weight_scales={"0.weight": scale})
    assert seven.kept == ()
    assert "1 weights use all 8 bits and were rounded to 7" in seven.notes[0]
    eight = quantize_onnx(tmp_path / "float.onnx", tmp_path / "b.onnx", [x], weight_scales={"0.weight": scale}, weight_bits=8)
    assert eight.kept == ("0.weight",)
    largest = {
        name: max(
            abs(int(numpy_helper.to_array(item).astype(int).max()))
            for item in onnx.load(tmp_path / name).graph.initializer
            if item.name == "0.weight_quantized"
        )
        for name in ("a.onnx", "b.onnx")
    }
    assert largest["a.onnx"] <= 64
    assert largest["b.onnx"] == 127


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.rnn(self.embed(ids))[0][:, -1])


def test_recurrent_layers_stay_float_and_are_named(tmp_path):
    ids = torch.randint(0, 9, (4, 5))
    to_onnx(Text(), ids, tmp_path / "float.onnx")
    quantized = quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", [ids])
    assert [note.split("'")[1] for note in quantized.notes] == ["rnn"]
    found = integer_operators(tmp_path / "int8.onnx")
    assert found.integer == {"QGemm": 1}
    assert found.floating == {"GRU": 1, "Mul": 1}


@pytest.mark.parametrize("step", [None, ex.Quantize(8), ex.Quantize(6, per="tensor")], ids=str)
def test_embeddings_are_looked_up_in_eight_bits_on_the_grid_they_have(step, tmp_path):
    torch.manual_seed(0)
    model, ids = nn.Sequential(nn.Embedding(500, 32), nn.Linear(32, 4)).eval(), torch.randint(0, 500, (4, 5))
    small = model if step is None else step(model, ex.Task(model, calibration=[ids]))[0]
    made = export(small, tmp_path / "int8.onnx", calibration=[ids], precision="int8")
    assert not [note for note in made.notes if "float" in note]
    assert made.path.stat().st_size < 500 * (32 + 4) + 4000
    stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(made.path).graph.initializer}
    found = stored["0.weight_codes"] * stored["0.weight_scales"]
    torch.testing.assert_close(torch.from_numpy(found), small[0].weight.detach(), rtol=0, atol=0.02 if step is None else 1e-6)
    assert relative(OnnxModel(made.path)(ids), small(ids)) < 0.02


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_no_calibration_batch_is_an_export_error_and_writes_nothing(residual, tmp_path):
    with pytest.raises(ExportError, match="calibration"):
        quantize_onnx(residual[1], tmp_path / "int8.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_quantizing_prints_and_logs_nothing(residual, tmp_path, capfd, caplog):
    quantize_onnx(residual[1], tmp_path / "int8.onnx", batches(1))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_a_recurrent_layer_of_two_layers_is_named_once(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 8, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0]

    x = torch.randn(3, 5, 4)
    made = export(Recurrent().eval(), tmp_path / "small.onnx", calibration=[x], precision="int8")
    assert len([note for note in made.notes if "'gru' stays float" in note]) == 1
