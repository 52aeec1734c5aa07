"""int8 files of networks whose numbers break a plain min-max quantizer: masks, tiny weights beside biases, transposed layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.operators import integer_operators
from enxuto.exporters import export


def error_of(path: Path, model: nn.Module, *inputs: Tensor) -> float:
    with torch.no_grad():
        expected = model(*inputs)
    return float((OnnxModel(path)(*inputs) - expected).norm() / expected.norm())


class Attention(nn.Module):
    """One head whose scores are masked in the way that is named."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x).transpose(1, 2)
        if self.way == "where":
            return (q @ k).masked_fill(mask[:, None, :] == 0, float("-inf")).softmax(-1) @ self.v(x)
        if self.way == "built in":
            heads = (tensor[:, None] for tensor in (q, self.k(x), self.v(x)))
            seen = (mask[:, None, None, :] > 0).expand(-1, 1, x.shape[1], -1)
            return nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen)[:, 0]
        size = torch.finfo(torch.float32).min if self.way == "smallest" else float(self.way)
        scores = q @ k / 4 + (1 - mask[:, None, :]) * size
        if self.way == "-1e8":  # a second mask on top, and a step between that and the softmax
            scores = (scores + (1 - mask[:, None, :]) * size) * 1.5
        return scores.softmax(-1) @ self.v(x)


@pytest.mark.parametrize("way", ["smallest", "-1e4", "-1e8", "where", "built in"])
def test_a_masked_attention_is_as_good_in_int8_as_without_a_mask(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, mask = Attention(way).eval(), torch.randn(8, 16, 32), torch.ones(8, 16)
    export(model, tmp_path / "free.onnx", calibration=[(x, mask)], precision="int8")
    unmasked = error_of(tmp_path / "free.onnx", model, x, mask)
    mask[:, 12:] = 0
    export(model, tmp_path / "masked.onnx", calibration=[(x, mask)], precision="int8")
    assert error_of(tmp_path / "masked.onnx", model, x, mask) < 1.5 * unmasked < 0.1
    assert integer_operators(tmp_path / "masked.onnx").integer["QLinearMatMul"] >= 2


def test_a_mask_that_no_softmax_follows_takes_no_grid(tmp_path: Path) -> None:
    class LargestSeen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.after((self.before(x) + (mask - 1)[..., None] * 1e9).amax(1))

    torch.manual_seed(0)
    model, x, mask = LargestSeen().eval(), torch.randn(64, 6, 8), torch.ones(64, 6)
    mask[:, 4:] = 0
    export(model, tmp_path / "int8.onnx", calibration=[(x, mask)], precision="int8")
    assert error_of(tmp_path / "int8.onnx", model, x, mask) < 0.05


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5, 2e-6, 1e-6, 1e-8, 1e-20, 1e-38, 0.0])
def test_weights_of_any_size_leave_room_for_their_bias(size: float, given: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight[:8] = model[0].weight[:8].abs() * size  # their products add up, as far as they can
        model[0].bias[:8] = torch.tensor([1.0, 0.3, 0.1, 3.0, 10.0, 1e-3, 1e-6, 0.0])
    x = torch.rand(32, 512)
    if given:
        model, _ = ex.run(ex.Task(model, calibration=[x]), [ex.Quantize(bits=7, activations=8)])
    export(model, tmp_path / "int8.onnx", calibration=[x], precision="int8")
    assert error_of(tmp_path / "int8.onnx", model, x) < 0.03


def test_a_channel_whose_batch_norm_decayed_keeps_its_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 1e-6, 1.0
    x = torch.randn(16, 3, 8, 8)
    export(model, tmp_path / "int8.onnx", calibration=[x], precision="int8")
    assert error_of(tmp_path / "int8.onnx", model, x) < 0.03


@pytest.mark.parametrize("steps", [[], [ex.Quantize(bits=8, activations=8)], [ex.Quantize(bits=7, per="tensor", activations=8)]])
@pytest.mark.parametrize(("wide", "narrow", "groups"), [(32, 16, 1), (16, 16, 1), (16, 32, 4)])
def test_a_transposed_convolution_stays_float_by_name(steps: list, wide: int, narrow: int, groups: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, wide, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 2, 2, groups=groups)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(narrow), nn.ReLU(), nn.Conv2d(narrow, 4, 1)).eval()
    x = torch.randn(4, 3, 8, 8)
    small = ex.run(ex.Task(model, calibration=[x]), steps)[0] if steps else model
    made = export(small, tmp_path / "int8.onnx", calibration=[x], precision="int8")
    assert [note for note in made.notes if "'2'" in note and "stays float" in note]
    assert not [note for note in made.notes if "scales" in note]
    assert error_of(tmp_path / "int8.onnx", small, x) < 0.05
    assert integer_operators(tmp_path / "int8.onnx").integer["QLinearConv"] == 2
