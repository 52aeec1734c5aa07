"""A coded network as .onnx: its own codes and input grids arrive in the int8 file."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import ExportError, RangeError
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.operators import integer_operators
from enxuto.exporters import OnnxFile, export, input_grids, settle
from enxuto.exporters.weights import on_grids, weight_scales
from enxuto.layers import Affine, Table
from enxuto.layers.activations import ActivationGrid
from enxuto.layers.coded import code_
from toys import Block, Mlp, inputs, seeded


def coded() -> nn.Module:
    """Convolutions of 7 bits per channel and 4 bits per tensor, a Linear with a table, one calibrated input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    for path, grid in ((0, Affine(7)), (2, Affine(4, "tensor")), (5, Table(3))):
        code_(model[path], "weight", grid.encode(model[path].weight))
    model[2].input_grid = ActivationGrid(0.015625, 3)
    return model


def test_float_export_decodes_and_gives_what_the_coded_network_gives(tmp_path):
    model = coded()
    del model[2].input_grid
    x = torch.randn(4, 3, 8, 8)
    written = export(model, tmp_path / "model.onnx", calibration=[x])
    assert written == OnnxFile(tmp_path / "model.onnx", "fp32", True)
    torch.testing.assert_close(OnnxModel(written.path)(x), model(x), rtol=1e-4, atol=1e-5)


def test_int8_export_keeps_codes_scales_and_input_grids(tmp_path):
    model = coded()
    x = torch.randn(16, 3, 8, 8)
    assert set(weight_scales(model)) == {"0.weight", "2.weight"}
    assert input_grids(model) == {"2": (0.015625, 3)}
    export(model, tmp_path / "int8.onnx", calibration=[x], precision="int8")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    stored = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    for path in (0, 2):
        tensor = model[path].coded["weight"]
        assert torch.equal(stored[f"{path}.weight_quantized"].int(), tensor.signed())
        assert torch.equal(stored[f"{path}.weight_scale"].reshape(-1), tensor.scale.expand(8))
    assert integer_operators(tmp_path / "int8.onnx").floating == {}
    scales = [value for name, value in stored.items() if name.endswith("_scale") and value.dim() == 0]
    assert any(float(value) == 0.015625 for value in scales)
    expected = model(x).detach()
    error = (OnnxModel(tmp_path / "int8.onnx")(x) - expected).square().sum() / expected.square().sum()
    assert float(error) < 0.01


@pytest.mark.parametrize("bad", [{"precision": "int3", "calibration": [torch.ones(1, 3, 8, 8)]}, {"calibration": []}])
def test_a_precision_nobody_knows_or_no_batch_is_refused(bad, tmp_path):
    with pytest.raises(ExportError, match=r"x\.onnx"):
        export(coded(), tmp_path / "x.onnx", **bad)


def error(model: nn.Module, path, x: Tensor) -> float:
    expected = model(x).detach()
    return float((OnnxModel(path)(x) - expected).square().sum() / expected.square().sum())


@pytest.mark.parametrize("step", [None, ex.Quantize(8), ex.Share(8)], ids=str)
def test_weights_without_a_grid_of_seven_bits_are_rounded_by_the_batches(step, tmp_path):
    torch.manual_seed(0)
    mixed = torch.randn(12, 12) / 3
    x = (torch.randn(256, 4) @ torch.randn(4, 12)).relu() @ mixed  # inputs that hang together
    model = seeded(Mlp)
    if step is not None:
        model, _ = step(model, ex.Task(model, calibration=[x]))
    errors = {}
    for rounding in ("nearest", "gptq"):
        made = export(model, tmp_path / "m.onnx", calibration=[x], precision="int8", rounding=rounding)
        errors[rounding] = error(model, made.path, x)
        assert integer_operators(made.path).integer == {"QGemm": 3}
        assert any("use all 8 bits" in note for note in made.notes) == isinstance(step, ex.Quantize)
    assert errors["gptq"] < 0.8 * errors["nearest"]


def test_projections_of_attention_keep_the_grid_they_were_rounded_on(tmp_path):
    model, x = seeded(Block), inputs(Block)
    small, _ = ex.Quantize(7)(model, ex.Task(model, calibration=[x]))
    made = export(small, tmp_path / "m.onnx", calibration=[x], precision="int8")
    assert [note for note in made.notes if "larger than in float32" not in note] == []
    stored = [numpy_helper.to_array(item) for item in onnx.load(made.path).graph.initializer]
    codes = small.attention.coded["in_proj_weight"].signed().T.numpy()
    assert any(item.shape == codes.shape and (item == codes).all() for item in stored)


def test_a_rounding_nobody_knows_is_refused(tmp_path):
    with pytest.raises(RangeError, match="rounding='up'"):
        export(coded(), tmp_path / "x.onnx", calibration=[torch.ones(1, 3, 8, 8)], precision="int8", rounding="up")


@pytest.mark.parametrize("swapped", [False, True])
def test_unless_it_is_said_weights_are_rounded_the_way_that_leaves_outputs_nearer(swapped, tmp_path, monkeypatch):
    if swapped:  # as where the data mislead: rounding to nearest comes under the name of the other
        other = {"nearest": "gptq", "gptq": "nearest"}
        monkeypatch.setattr(settle, "on_grids", lambda model, batches, way, *more: on_grids(model, batches, other[way], *more))
    model, x = seeded(Mlp), torch.randn(256, 12)
    ways = ("nearest", "gptq", None)
    near, by_data, chosen = (
        export(model, tmp_path / "m.onnx", calibration=[x], precision="int8", rounding=way).error for way in ways
    )
    assert (near < by_data) == swapped
    assert chosen == min(near, by_data)
