"""The ways of a layer in a small file: on integers with a range of each call, with 4 bits, or stored in 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import enxuto as ex
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.operators import integer_operators
from enxuto.exporters import export, settle
from enxuto.exporters.graphs import on_grid
from enxuto.exporters.nibbles import packed, unpacked
from enxuto.exporters.weights import exchanged
from toys import Block, inputs, seeded


class Sequences(nn.Module):
    """Two recurrent layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 16, batch_first=True, num_layers=2, bidirectional=True)
        self.gru = nn.GRU(32, 16, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(self.lstm(x)[0])[0][:, -1])


def sequences() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return Sequences().eval(), [torch.randn(8, 6, 24), torch.randn(8, 6, 24)]


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def test_recurrent_layers_get_a_range_of_each_call_or_bytes_alone(tmp_path: Path) -> None:
    model, batches = sequences()
    whole = export(model, tmp_path / "float.onnx", calibration=batches)
    made = export(model, tmp_path / "int8.onnx", calibration=batches, precision="int8")
    assert integer_operators(made.path).integer == {"DynamicQuantizeLSTM": 2, "QGemm": 1}
    assert integer_operators(made.path).floating["GRU"] == 1
    assert made.notes == ("'gru' stays float, its weights in 8 bits: ONNX Runtime has no integer operator for GRU",)
    assert made.error < 0.02
    assert made.path.stat().st_size < 0.6 * whole.path.stat().st_size
    assert OnnxModel(made.path)(batches[0][:3]).shape == (3, 3)  # the batch axis is free


def test_a_coded_lstm_keeps_its_codes(tmp_path: Path) -> None:
    model, batches = sequences()
    small, _ = ex.Quantize(6, layers="lstm")(model, ex.Task(model, calibration=batches))
    made = export(small, tmp_path / "int8.onnx", calibration=batches, precision="int8")
    stored = initializers(made.path)
    for layer, name in enumerate(("lstm/LSTM", "lstm/LSTM.2")):
        for part in ("ih", "hh"):
            found = stored[f"{name}.{part}"].astype(int)[0].T.reshape(4, 16, -1)
            codes = small.lstm.coded[f"weight_{part}_l{layer}"].signed().numpy().reshape(4, 16, -1)
            assert (found == codes[[0, 3, 1, 2]]).all()


@pytest.mark.parametrize(("precision", "operator"), [("int8-dynamic", "DynamicQuantizeMatMul"), ("int4", "MatMulNBits")])
def test_every_product_of_a_network_takes_the_operator_of_its_precision(precision: str, operator: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    x = torch.randn(16, 1, 8, 8)
    whole = export(model, tmp_path / "float.onnx", calibration=[x])
    made = export(model, tmp_path / "small.onnx", calibration=[x], precision=precision)
    assert integer_operators(made.path).integer == {operator: 2}
    assert integer_operators(made.path).floating == {"Conv": 1}
    assert made.notes == ()
    assert made.error < 0.1
    assert made.path.stat().st_size < (0.22 if precision == "int4" else 0.29) * whole.path.stat().st_size + 2000
    assert OnnxModel(made.path)(x[:3]).shape == (3, 5)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int4"])
def test_a_layer_of_several_products_is_written(precision: str, tmp_path: Path) -> None:
    model, x = seeded(Block), inputs(Block)
    made = export(model, tmp_path / "small.onnx", calibration=[x], precision=precision)
    found = integer_operators(made.path).integer
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] + found["MatMulNBits"] >= 4
    assert made.error < 0.1


@pytest.mark.parametrize("step", [ex.Quantize(4, per="group", group=size) for size in (16, 32, 128)] + [ex.Quantize(3)], ids=str)
def test_grids_of_four_bits_are_the_file_s_exactly(step: ex.Step, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 4)).eval(), torch.randn(32, 256)
    small, _ = step(model, ex.Task(model, calibration=[x]))
    made = export(small, tmp_path / "small.onnx", calibration=[x], precision="int4")
    node = next(node for node in onnx.load(made.path).graph.node if node.op_type == "MatMulNBits")
    codes, scales = (initializers(made.path)[name] for name in node.input[1:3])
    torch.testing.assert_close(torch.from_numpy(unpacked(codes, scales)), small[0].weight.detach(), rtol=1e-6, atol=0)
    assert made.error < 0.02  # the operator rounds its inputs


def test_inputs_that_no_block_divides_are_padded() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 45)).astype(np.float32)
    codes, scales, block = packed(weight, None)
    assert (codes.shape, scales.shape, block) == ((3, 2, 16), (6,), 32)
    found = unpacked(codes, scales)
    assert np.abs(found[:, :45] - weight).max() <= scales.max() / 2 + 1e-6
    assert not found[:, 45:].any()


def test_codes_are_kept_only_where_all_values_lie_on_the_grid() -> None:
    rows = np.array([[1.0, -3.0], [0.5, 0.25]], dtype=np.float32)
    codes, scale = on_grid(rows, np.array([0.25], dtype=np.float32), 64)
    assert (codes.tolist(), scale.tolist()) == ([[4, -12], [2, 1]], [0.25, 0.25])
    codes, scale = on_grid(rows, np.array([0.3], dtype=np.float32), 64)
    assert codes.tolist() == [[21, -64], [64, 32]]


def test_a_layer_that_four_bits_ruin_gets_more_and_is_named(tmp_path: Path) -> None:
    """One input that is hardly ever read takes the range of its block; so the others have no codes left."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4)).eval(), torch.randn(64, 64)
    with torch.no_grad():
        model[0].weight[:, ::16] *= 300
    x[:, ::16] /= 300
    made = export(model, tmp_path / "small.onnx", calibration=[x], precision="int4", rounding="nearest")
    assert made.error < 0.1
    assert any(note.startswith("'0/") and "with weights of 4 bits, outputs would be off by" in note for note in made.notes)


@pytest.mark.parametrize("step", [ex.Quantize(4, per="group", group=16), ex.Quantize(3), ex.Quantize(2, per="tensor")], ids=str)
def test_a_table_on_a_grid_of_four_bits_is_two_codes_a_byte(step: ex.Step, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = nn.Sequential(nn.Embedding(400, 64), nn.Linear(64, 3)).eval(), torch.randint(0, 400, (4, 5))
    small, _ = step(model, ex.Task(model, calibration=[ids]))
    made = export(small, tmp_path / "small.onnx", calibration=[ids], precision="int8")
    assert [node.op_type for node in onnx.load(made.path).graph.node].count("GatherBlockQuantized") == 1
    assert made.path.stat().st_size < 400 * (32 + 16) + 4000
    assert made.error < 0.03


def test_weights_that_are_put_into_the_file_give_what_writing_it_anew_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = seeded(Block), inputs(Block)
    put: list[bool] = []
    monkeypatch.setattr(settle, "TRIES", 2)  # each writes the graph anew
    monkeypatch.setattr(settle, "exchanged", lambda *args: put.append(exchanged(*args)) or put[-1])
    fast = export(model, tmp_path / "fast.onnx", calibration=[x], precision="int4", max_error=0.03)
    monkeypatch.setattr(settle, "exchanged", lambda *args: False)
    anew = export(model, tmp_path / "anew.onnx", calibration=[x], precision="int4", max_error=0.03)
    assert len(put) >= 2
    assert all(put)
    assert fast.path.read_bytes() == anew.path.read_bytes()
    assert (fast.notes, fast.error) == (anew.notes, anew.error)


class Twice(nn.Module):
    """One matrix under two names, one as it is and one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.third.weight.data = self.first.weight.data.T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("name", ["first.weight", "third.weight", "third.bias", "second.bias"])
def test_a_weight_is_only_put_in_where_it_is_told_for_certain(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Twice().eval(), tmp_path / "float.onnx"
    export(model, path, calibration=[torch.randn(4, 6)])
    before = path.read_bytes()
    old: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    new = old | {name: torch.randn_like(old[name])}
    assert exchanged(path, old, new) == name.endswith("bias")
    if name.endswith("bias"):
        assert np.array_equal(initializers(path)[name], new[name].numpy())
    else:
        assert path.read_bytes() == before
