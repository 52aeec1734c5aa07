"""Every exported file beside torch: a bad int8 file has a note with its layer, a ruinous one is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import ExportError, RangeError
from enxuto.evaluation.operators import integer_operators
from enxuto.exporters import export
from enxuto.exporters.compared import distance, worst_layer

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


def uneven(factor: float) -> nn.Module:
    """Two channels of which the next layer reads the difference take most of the range of the grid they share."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[0] *= factor
        model[0].weight[1] += model[0].weight[0]
        model[1].weight[:, 0] = -model[1].weight[:, 1]
    return model


def test_a_good_int8_file_says_how_good_and_nothing_else(tmp_path: Path) -> None:
    made = export(uneven(1), tmp_path / "int8.onnx", calibration=[X], precision="int8")
    assert 0 < made.error < 0.05
    assert made.error == distance(uneven(1), tmp_path / "int8.onnx", [X]).size
    assert [note for note in made.notes if "larger than in float32" not in note] == []
    assert export(uneven(1), tmp_path / "fp32.onnx", calibration=[X]).error < 1e-5


def test_a_layer_that_hurts_is_computed_more_exactly_and_named_with_its_cost(tmp_path: Path) -> None:
    made = export(uneven(60), tmp_path / "int8.onnx", calibration=[X[:100], X[100:]], precision="int8")
    assert made.error < 0.1
    named = [note for note in made.notes if note.startswith("'1/Gemm' computes")]
    assert re.search(r"with a fixed range of its inputs, outputs would be off by (2|3)\d%$", named[0])
    assert integer_operators(made.path).integer == {"QGemm": 1}
    closer = export(uneven(1), tmp_path / "closer.onnx", calibration=[X], precision="int8", max_error=0.002)
    assert closer.error < 0.002 < export(uneven(1), tmp_path / "int8.onnx", calibration=[X], precision="int8").error


@pytest.mark.parametrize("bad", [0, 1, "much"])
def test_an_error_that_is_no_fraction_is_refused(bad: object, tmp_path: Path) -> None:
    with pytest.raises(RangeError, match=r"max_error="):
        export(uneven(1), tmp_path / "x.onnx", calibration=[X], precision="int8", max_error=bad)


def rough_table(size: float) -> tuple[nn.Module, Tensor]:
    """Rows of which one value takes all of the range and is not read: no layer can make good what rounding them costs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[:, 0] = size
        model[1].weight[:, 0] = 0.0
    return model, torch.arange(9).repeat(4, 1)


def test_a_ruinous_int8_file_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "int8.onnx").write_bytes(b"old")
    model, ids = rough_table(3000)
    with pytest.raises(ExportError, match=r"'int8.onnx' is no version of the network: .* adds most"):
        export(model, tmp_path / "int8.onnx", calibration=[ids], precision="int8")
    assert (tmp_path / "int8.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("wide", [1.3, 20.0])
def test_a_float_file_is_judged_as_well_before_it_takes_the_place_of_another(tmp_path: Path, wide: float) -> None:
    """Inputs outside the range that the network rounds them to are cut there, and in no float file."""
    net = uneven(1)
    model, _ = ex.Quantize(bits=8, activations=8)(net, ex.Task(net, calibration=[X / wide]))
    (tmp_path / "a.onnx").write_bytes(b"old")
    if wide < 2:
        made = export(model, tmp_path / "a.onnx", calibration=[X, X * 1.3])
        assert 0.1 < made.error < 0.5
        assert made.notes[-1] == f"its outputs are {made.error:.0%} off from torch's"
    else:
        with pytest.raises(ExportError, match=r"fp32 version of 'a.onnx' is no version .* off from torch's; give calibration"):
            export(model, tmp_path / "a.onnx", calibration=[X])
        assert (tmp_path / "a.onnx").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_a_file_that_cannot_be_compared_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, path: Path, batches: object) -> float:
        raise ExportError(f"'{path.name}' does not take the second batch")

    for precision, place in (("fp32", "compared"), ("int8", "settle")):
        monkeypatch.setattr(f"enxuto.exporters.{place}.distance", fails)
        with pytest.raises(ExportError, match=r"^'a.onnx' does not take the second batch"):
            export(uneven(1), tmp_path / "a.onnx", calibration=[X], precision=precision)
    assert not list(tmp_path.iterdir())


def test_the_error_is_that_of_the_worst_output_and_masks_do_not_count(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, add: float) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.add = add

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.layer(x)
            return {"y": y, "z": (y[:, :4] + self.add).masked_fill(x[:, :4] > 1, float("-inf")), "which": y.argmax(1)}

    torch.manual_seed(0)
    one = Two(0.0).eval()
    other = Two(0.1).eval()
    other.load_state_dict(one.state_dict())
    export(one, tmp_path / "one.onnx", calibration=[X])
    with torch.no_grad():
        z = other(X)["z"]
    expected = 0.1 * z.isfinite().sum().sqrt() / z[z.isfinite()].norm()
    assert distance(other, tmp_path / "one.onnx", [X]).size == pytest.approx(float(expected), rel=1e-3)


def test_outputs_that_hardly_differ_between_samples_are_judged_by_what_they_differ(tmp_path: Path) -> None:
    """Little of a large output, and most of what tells one sample from the next."""
    model = uneven(1)
    with torch.no_grad():
        model[1].bias += 100 * float(model[:2](X).std())  # what the last layer reads hardly differs on its grid
        model[2].bias += 100 * float(model(X).std())
    made = export(model, tmp_path / "int8.onnx", calibration=[X[:50], X[50:]], precision="int8")
    assert made.error < 0.01
    expected, file = model(X).detach(), ex.evaluation.onnxmodel.OnnxModel(tmp_path / "int8.onnx")
    spread = ((file(X) - expected).square() / expected.var(0, correction=0)).mean().sqrt()
    assert spread < 0.1
    assert any(
        re.match(r"'\d/Gemm' computes in float: with a fixed range of its inputs, outputs would", note) for note in made.notes
    )
    loose = export(model, tmp_path / "int8.onnx", calibration=[X], precision="int8", max_error=0.99)
    assert re.match(r"its outputs are off from torch's by \d\d% of what they differ between samples, and '", loose.notes[-1])
    assert export(model, tmp_path / "fp32.onnx", calibration=[X]).notes == ()


def test_a_file_that_answers_where_torch_gives_zeros_is_infinitely_far(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    export(model, tmp_path / "one.onnx", calibration=[X])
    torch.nn.init.zeros_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    assert distance(model, tmp_path / "one.onnx", [X]).size == float("inf")
    assert export(model, tmp_path / "zero.onnx", calibration=[X]).error == 0
    assert export(model, tmp_path / "int8.onnx", calibration=[X], precision="int8").error == 0


def test_equal_files_have_no_worst_layer(tmp_path: Path) -> None:
    export(uneven(1), tmp_path / "a.onnx", calibration=[X])
    assert "0.0% of what it gives" in worst_layer(tmp_path / "a.onnx", tmp_path / "a.onnx", X)


def test_a_result_does_not_hand_out_a_worse_int8_file_without_a_word(tmp_path: Path) -> None:
    model, ids = rough_table(50)
    with torch.no_grad():
        wanted = model(ids).argmax(-1)
    task = ex.Task(model, calibration=[ids], evaluate=lambda network: (network(ids).argmax(-1) == wanted).float().mean(1))
    result = ex.compress(task, steps=[ex.Quantize(bits=8, layers="1")], out=tmp_path)
    assert result.evaluation.compressed.quality > 0.97
    assert any("small.int8.onnx: its outputs are" in note for note in result.evaluation.notes)
    made = ex.export(result, tmp_path / "again.onnx", precision="int8")
    assert any(re.match(r"the int8 file has quality \d\d\.\d\d%, where", note) for note in made.notes)
    assert ex.export(result, tmp_path / "auto.onnx").precision == "fp32"
