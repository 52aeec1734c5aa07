"""The float32 .onnx file: its outputs, its batch axis, its graph, and what happens when a model cannot be exported."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.calls import call
from enxuto.errors import ExportError, OutputError
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.quality import agreement
from enxuto.exporters.onnx import to_onnx


class Words(nn.Module):
    """Integer inputs, an embedding, a bidirectional recurrent layer, a dict with a tuple and a None as output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, ids: Tensor, factor: Tensor | None = None) -> dict[str, object]:
        hidden, _ = self.rnn(self.embed(ids))
        logits = self.head(hidden[:, -1])
        return {"logits": logits if factor is None else logits * factor, "extra": (hidden, None)}


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(4, 12))


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "batch", "other"),
    [
        (Pooled(), torch.randn(1, 3, 8, 8), torch.randn(5, 3, 8, 8)),
        (nn.MultiheadAttention(8, 2, batch_first=True), (torch.randn(2, 4, 8),) * 3, (torch.randn(3, 4, 8),) * 3),
        (
            Words(),
            {"ids": torch.randint(0, 11, (3, 6)), "factor": torch.tensor(2.0)},
            {"ids": torch.randint(0, 11, (7, 6)), "factor": torch.tensor(0.5)},
        ),
        (nn.GRU(4, 5, 2, batch_first=True), torch.randn(2, 6, 4), torch.randn(3, 6, 4)),
    ],
    ids=["tensor", "tuple", "dict", "recurrent"],
)
def test_the_file_gives_what_torch_gives_at_every_batch_size(model, batch, other, tmp_path):
    written = to_onnx(model, batch, tmp_path / "model.onnx")
    assert written.dynamic_batch
    assert written.notes == ()
    assert written.difference < 1e-5
    file = OnnxModel(tmp_path / "model.onnx")
    model.eval()
    for inputs in (batch, other):
        torch.testing.assert_close(call(file, inputs), call(model, inputs), rtol=1e-4, atol=1e-5)


def test_a_model_that_allows_one_batch_size_only_says_so_and_is_fed_in_parts(tmp_path):
    model = Fixed()
    written = to_onnx(model, torch.randn(4, 3, 4), tmp_path / "model.onnx")
    assert not written.dynamic_batch
    assert "fixed at 4" in written.notes[0]
    x = torch.randn(4, 3, 4)
    found = OnnxModel(tmp_path / "model.onnx")(torch.cat([x, x[:3]]))
    assert found.shape == (7, 3)
    torch.testing.assert_close(found, torch.cat([model(x), model(x)[:3]]), rtol=1e-4, atol=1e-5)


def test_a_static_batch_can_be_asked_for(tmp_path):
    written = to_onnx(Pooled(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx", dynamic_batch=False)
    assert not written.dynamic_batch
    shape = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [2, 3, 8, 8]


def test_the_graph_is_tidy_and_holds_no_path_of_this_machine(tmp_path):
    model = Pooled().train()
    to_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert proto.graph.node[0].name == "conv/Conv"
    assert proto.graph.node[-1].name == "fc/Gemm"
    assert {"conv.weight", "fc.weight"} <= {item.name for item in proto.graph.initializer}
    assert b".py" not in (tmp_path / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert all(module.training for module in model.modules())


def test_exporting_prints_and_logs_nothing(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        to_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize(("model", "words"), [(Branching(), "branches"), (Noisy(), "differs from torch")])
def test_a_model_that_cannot_be_exported_is_refused_and_the_old_file_stays(model, words, tmp_path, capfd):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=words):
        to_onnx(model, torch.randn(2, 3), path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")  # torch prints its graph


class Scaled(nn.Module):
    """A parameter, a buffer or a layer of any name."""

    def __init__(self, name: str, scale: Tensor | nn.Module) -> None:
        super().__init__()
        self.name = name
        if isinstance(scale, nn.Module | nn.Parameter):
            setattr(self, name, scale)
        else:
            self.register_buffer(name, scale)

    def forward(self, x: Tensor) -> Tensor:
        scale = getattr(self, self.name)
        return scale(x) if isinstance(scale, nn.Module) else x * scale


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
@pytest.mark.parametrize(
    ("kind", "scale"), [("buffer", torch.ones(3)), ("parameter", nn.Parameter(torch.ones(3))), ("layer", nn.Linear(3, 3))]
)
def test_a_name_that_torch_has_taken_is_to_be_renamed(kind, scale, name, tmp_path):
    with pytest.raises(ExportError, match=f"rename the {kind} '{name}'") as caught:
        to_onnx(Scaled(name, scale), torch.randn(2, 3), tmp_path / "a.onnx")
    assert "branches" not in str(caught.value)
    to_onnx(nn.Sequential(Scaled(name, scale)), torch.randn(2, 3), tmp_path / "a.onnx")


def test_a_forward_that_leaves_torch_is_told_so(tmp_path):
    class Numpy(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy() + 1)

    with pytest.raises(ExportError, match="operators of torch alone") as caught:
        to_onnx(Numpy(), torch.randn(2, 3), tmp_path / "a.onnx")
    assert "branches" not in str(caught.value)


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="could not be written"):
        to_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "missing" / "model.onnx")


def test_a_dtype_without_kernels_is_named_with_the_remedy(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).bfloat16().eval()
    with pytest.raises(ExportError, match=r"'0.weight' is bfloat16, .* model.float\(\)"):
        to_onnx(model, torch.randn(2, 3, 8, 8).bfloat16(), tmp_path / "net.onnx")


def test_an_operator_that_onnx_lacks_is_named_on_one_line_without_colours(tmp_path):
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match=r"bessel_j0.*operators that ONNX has") as caught:
        to_onnx(Bessel(), torch.randn(2, 3), tmp_path / "net.onnx")
    assert not {"\x1b", "\n"} & set(str(caught.value))


def test_infinite_outputs_are_compared_too(tmp_path):
    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(x > 0, float("-inf"))

    assert to_onnx(Masked(), torch.randn(4, 3), tmp_path / "net.onnx").difference == 0


class Answer(OrderedDict):
    """What model libraries return: a dict of a class of their own, whose entries are attributes too."""

    def __getattr__(self, name):
        return self[name]


class Library(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return Answer(logits=self.head(hidden), hidden=(hidden, 2 * hidden), loss=None)


def test_outputs_of_a_class_of_the_users_are_exported(tmp_path):
    net, x = Library().eval(), torch.randn(6, 8)
    to_onnx(net, x, tmp_path / "a.onnx")
    found = OnnxModel(tmp_path / "a.onnx")(x)
    assert torch.allclose(found.logits, net(x).logits, atol=1e-5)
    assert [part.shape for part in found["hidden"]] == [(6, 16), (6, 16)]
    assert not net._forward_hooks


def test_a_network_in_double_precision_that_the_runtime_lacks_is_told_so(tmp_path):
    net = nn.Sequential(nn.Linear(8, 4), nn.ELU()).double().eval()
    with pytest.raises(ExportError, match=r"'0\.weight' is float64.*model\.float\(\)"):
        to_onnx(net, torch.randn(2, 8).double(), tmp_path / "a.onnx")


@dataclass
class Found:
    """What detectors of a user's own return."""

    scores: Tensor
    boxes: tuple[Tensor, Tensor]


class Detector(Library):
    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return Found(self.head(hidden), (hidden[:, :4], 2 * hidden[:, 4:]))


def test_a_dataclass_is_judged_taught_and_exported_like_a_dict(tmp_path):
    net, x = Detector().eval(), torch.randn(16, 8)
    task = ex.Task(net, calibration=[x])
    small, _ = ex.run(task, [ex.Prune(0.7), ex.Recover(epochs=20)])
    pruned, _ = ex.run(task, [ex.Prune(0.7)])
    judge = agreement(net, [x])
    assert 0 < float(judge(pruned).mean()) < float(judge(small).mean()) < 1
    to_onnx(small, x, tmp_path / "a.onnx")
    found = OnnxModel(tmp_path / "a.onnx")(x)
    assert torch.allclose(found.scores, small(x).scores, atol=1e-5)
    assert torch.allclose(found.boxes[1], small(x).boxes[1], atol=1e-5)
    assert float(judge(OnnxModel(tmp_path / "a.onnx")).mean()) == pytest.approx(float(judge(small).mean()), abs=1e-4)
