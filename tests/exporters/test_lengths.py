"""Axes that differ between calibration batches are free in every export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto import runtime
from enxuto.errors import ExportError
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.exporters import export


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(x))[0])


class Crossed(nn.Module):
    """Attention from one sequence to another, each with its own mask and length."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, sources: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        memory = self.kv(sources["x"])
        scores = self.q(target) @ memory.transpose(1, 2) / 6 + (1 - sources["mask"][:, None]) * -1e9
        return {"y": self.out(scores.softmax(-1) @ memory)}


def crossed(rows: int, source: int, target: int) -> dict[str, object]:
    return {
        "sources": {"x": torch.randn(rows, source, 16), "mask": torch.ones(rows, source)},
        "target": torch.randn(rows, target, 16),
    }


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("first", "second"), [((8, 14), (8, 15)), ((8, 14), (3, 9)), ((4, 1), (4, 6)), ((1, 7), (1, 9))])
def test_a_file_takes_any_length_when_the_batches_have_several(
    precision: str, first: tuple[int, int], second: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, batches = Tagger().eval(), [torch.randint(0, 30, shape) for shape in (first, second)]
    made = export(model, tmp_path / "net.onnx", calibration=batches, precision=precision)
    assert made.dynamic_batch
    for x in batches:
        expected = model(x).detach()
        assert float((OnnxModel(made.path)(x) - expected).norm() / expected.norm()) < (1e-5 if precision == "fp32" else 0.1)
    assert OnnxModel(made.path)(torch.randint(0, 30, (2, 21))).shape == (2, 21, 5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_nested_batches_have_their_own_lengths(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Crossed().eval(), [crossed(4, 6, 9), crossed(4, 11, 7), crossed(2, 6, 5)]
    made = export(model, tmp_path / "net.onnx", calibration=batches, precision=precision)
    for batch in (*batches, crossed(3, 5, 8)):
        expected = model(**batch)["y"].detach()
        error = (OnnxModel(made.path)(**batch)["y"] - expected).norm() / expected.norm()
        assert float(error) < (1e-5 if precision == "fp32" else 0.15)


def test_a_result_of_batches_of_several_lengths_has_all_its_files_and_figures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.randint(0, 30, (8, length)) for length in (14, 15)]
    result = ex.compress(ex.Task(Tagger(), calibration=batches), steps=[ex.Share(bits=4)], out=tmp_path)
    assert {item.precision for item in result.evaluation.exports} == {"fp32", "int8"}
    assert result.evaluation.compressed.latency_ms is not None
    assert OnnxModel(tmp_path / "small.onnx")(torch.randint(0, 30, (2, 40))).shape == (2, 40, 5)


def test_one_length_stays_fixed_and_other_tensors_are_refused(tmp_path: Path) -> None:
    x = torch.randint(0, 30, (8, 14))
    made = export(Tagger().eval(), tmp_path / "net.onnx", calibration=[x, x[:3]])
    with pytest.raises(ExportError, match="does not run"):
        OnnxModel(made.path)(torch.randint(0, 30, (8, 15)))
    with pytest.raises(ExportError, match="calibration batch 2 holds tensors"):
        export(Tagger().eval(), tmp_path / "net.onnx", calibration=[x, x[0]])


def test_a_forward_that_fixes_the_length_is_an_export_error_at_once(tmp_path: Path) -> None:
    class Fixed(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :7].reshape(x.shape[0], int(x[0, 0]) * 0 + 35)

    batches = [torch.randint(0, 30, (8, length)) for length in (14, 15)]
    with pytest.raises(ExportError, match="torch cannot export Fixed"):
        export(Fixed().eval(), tmp_path / "net.onnx", calibration=batches)


class Context(nn.Module):
    """A small GPT: a causal mask and places, both cut from tables of the longest context."""

    def __init__(self, longest: int = 24) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(30, 16), nn.Embedding(longest, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 30)
        self.register_buffer("bias", torch.tril(torch.ones(longest, longest))[None])

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        q, k, v = self.qkv(self.token(tokens) + self.place(torch.arange(length))).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)).masked_fill(self.bias[:, :length, :length] == 0, float("-inf"))
        return self.out(scores.softmax(-1) @ v)


@pytest.mark.parametrize("lengths", [(24, 10), (10, 24), (15, 10)])
def test_a_network_that_cuts_tables_to_the_length_takes_any(lengths: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, batches = Context().eval(), [torch.randint(0, 30, (4, length)) for length in lengths]
    file = export(net, tmp_path / "a.onnx", calibration=batches)
    assert file.dynamic_batch
    for tokens in (*batches, torch.randint(0, 30, (3, 7))):
        assert torch.allclose(OnnxModel(file.path)(tokens), net(tokens), atol=1e-4)


class Padded(nn.Module):
    """An encoder that leaves out padded tokens, for which torch has a shortcut of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_encoder_with_padding_is_calibrated_and_exported(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, tokens = Padded().eval(), torch.randint(1, 30, (6, 9))
    tokens[:, 6:] = 0
    small, _ = ex.run(ex.Task(net, calibration=[tokens]), [ex.Quantize(bits=8, activations=8)])
    file = export(small, tmp_path / "a.onnx", calibration=[tokens], precision=precision)
    assert file.error < 0.1
    wanted = net(tokens)[:, :6]  # with gradients, so without the shortcut
    assert torch.nn.functional.cosine_similarity(OnnxModel(file.path)(tokens)[:, :6], wanted, dim=-1).min() > 0.99


class Pixels(nn.Module):
    """Takes images whose channels are the last in memory, where the pixels in a row are a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pixel = nn.Conv2d(3, 4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.permute(0, 2, 3, 1).view(x.shape[0], -1, 3)
        return self.pixel(flat).relu().mean(1) + self.conv(x).relu().mean((2, 3))


class Images(Pixels):
    """Takes images however they lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def cropped(rows: int, size: int) -> Tensor:
    return torch.rand(rows, 3, size + 9, size + 5)[:, :, 2 : size + 2, :size]


VIEWS: dict[str, tuple[type[nn.Module], Callable[[int, int], Tensor]]] = {
    "all tokens but the last": (Tagger, lambda rows, length: torch.randint(0, 30, (rows, length + 1))[:, :-1]),
    "time before batch": (Tagger, lambda rows, length: torch.randint(0, 30, (length, rows)).T),
    "a token for all": (Tagger, lambda rows, length: torch.randint(0, 30, (rows, 1)).expand(rows, length)),
    "crops": (Images, cropped),
    "channels last": (Pixels, lambda rows, size: torch.rand(rows, size, size, 3).permute(0, 3, 1, 2)),
    "crops, channels last": (
        Images,
        lambda rows, size: torch.rand(rows, size + 4, size + 4, 3).permute(0, 3, 1, 2)[:, :, :size, :size],
    ),
}


@pytest.mark.parametrize("view", VIEWS)
def test_batches_that_are_views_in_two_lengths_leave_the_length_free(view: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, cut = VIEWS[view]
    net, batches, other = made().eval(), [cut(8, 20), cut(6, 13)], cut(3, 17)
    expected = net(other).detach()
    for precision, error in (("fp32", 1e-5), ("int8", 0.1)):
        file = export(net, tmp_path / "a.onnx", calibration=batches, precision=precision)
        assert file.dynamic_batch
        assert float((OnnxModel(file.path)(other) - expected).norm() / expected.norm()) < error
    ex.save(net, tmp_path / "a.nxt", graph=batches)
    found = torch.from_numpy(runtime.open(tmp_path / "a.nxt")(other.numpy()))
    assert torch.allclose(found, expected, atol=1e-5)
