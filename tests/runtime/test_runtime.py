"""A file with its graph runs where torch is not installed, and takes only inputs that fit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto import runtime
from enxuto.artifact.pack import pack
from enxuto.errors import ArtifactError, ExportError
from toys import Mlp, inputs, output, seeded


class Two(nn.Module):
    """Two inputs of different types, two outputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens, scale):
        x = self.embed(tokens) * scale[:, None, None]
        return self.fc(x), x.sum(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "two.nxt"
    model = seeded(Two)
    batch = (torch.randint(0, 9, (3, 5)), torch.rand(3))
    ex.save(model, path, graph=[batch])
    with torch.no_grad():
        return path, tuple(t.numpy() for t in batch), tuple(t.numpy() for t in model(*batch))


def test_inputs_go_in_a_row_or_by_name_and_outputs_come_in_a_row(two):
    path, batch, expected = two
    network = runtime.open(path, threads=1)
    assert (network.name, network.inputs, len(network.outputs)) == ("two.nxt", ("tokens", "scale"), 2)
    lists = [array.tolist() for array in batch]
    by_name = dict(zip(network.inputs, batch, strict=True))
    for found in (network(*batch), network(*lists), network(**by_name), network(batch[0], scale=batch[1])):
        assert isinstance(found, tuple)
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one - other).max() < 1e-5


def test_numbers_are_taken_in_the_type_of_the_network(two):
    path, (tokens, scale), expected = two
    found = runtime.open(path)(tokens.astype(np.uint8), torch.tensor(scale).double())
    assert np.abs(found[0] - expected[0]).max() < 1e-5


WRONG = {
    "none": lambda net, tokens, scale: net(),
    "too few": lambda net, tokens, scale: net(tokens),
    "too many": lambda net, tokens, scale: net(tokens, scale, scale),
    "twice": lambda net, tokens, scale: net(tokens, scale, scale=scale),
    "twice and one missing": lambda net, tokens, scale: net(tokens, tokens=tokens),
    "another name": lambda net, tokens, scale: net(tokens, size=scale),
    "another shape": lambda net, tokens, scale: net(tokens, scale[:, None, None]),
    "floats for integers": lambda net, tokens, scale: net(tokens + 0.5, scale),
    "words": lambda net, tokens, scale: net(tokens, ["a", "b", "c"]),
    "nothing in a list": lambda net, tokens, scale: net(tokens, [None] * 3),
    "ragged": lambda net, tokens, scale: net([[1], [2, 3]], scale),
    "a token beyond the table": lambda net, tokens, scale: net(tokens + 100, scale),
    "needs a gradient": lambda net, tokens, scale: net(tokens, torch.ones(3, requires_grad=True)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_inputs_that_do_not_fit_are_refused_in_three_clauses(wrong, two):
    path, batch, _ = two
    with pytest.raises(ExportError, match=r"(?s)^'two\.nxt' .*; give .*\.$"):
        WRONG[wrong](runtime.open(path), *batch)


def test_an_onnx_file_packed_or_not_opens(tmp_path):
    model = seeded(Mlp)
    ex.export(model, tmp_path / "a.onnx", calibration=[inputs(Mlp)])
    pack(tmp_path / "a.onnx", tmp_path / "packed.nxt")
    for name in ("a.onnx", "packed.nxt"):
        found = runtime.open(tmp_path / name)(inputs(Mlp).numpy())
        assert np.abs(found - output(model, inputs(Mlp)).numpy()).max() < 1e-5
    ex.export(seeded(Mlp, seed=1), tmp_path / "b.onnx", calibration=[inputs(Mlp)])
    pack(tmp_path / "b.onnx", tmp_path / "b.nxt", parent=tmp_path / "a.onnx")


def test_a_missing_damaged_or_foreign_file_is_refused(two, tmp_path):
    data = two[0].read_bytes()
    (tmp_path / "cut.nxt").write_bytes(data[:-30])
    (tmp_path / "text.nxt").write_text("nothing of the kind")
    (tmp_path / "text.onnx").write_text("nothing of the kind")
    for name in ("none.nxt", "cut.nxt", "text.nxt", "."):
        with pytest.raises(ArtifactError):
            runtime.open(tmp_path / name)
    for name in ("none.onnx", "text.onnx"):
        with pytest.raises(ExportError):
            runtime.open(tmp_path / name)


def test_a_file_runs_where_only_numpy_numba_and_onnxruntime_are(two):
    """Blocked, as if they were not installed: torch, onnx and whatever else enxuto needs to compress."""
    path, batch, expected = two
    np.savez(path.with_suffix(".npz"), *batch)
    blocked = ("torch", "onnx", "onnxscript", "scipy", "rich", "typer", "jinja2", "sklearn", "safetensors", "yaml")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import numpy as np, enxuto.runtime as runtime\n"
        "batch = np.load(sys.argv[2]).values()\n"
        "np.savez(sys.argv[3], *runtime.open(sys.argv[1])(*batch))\n"
    )
    command = [sys.executable, "-c", code, path, path.with_suffix(".npz"), path.with_name("found.npz")]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    found = np.load(path.with_name("found.npz"))
    assert all(np.abs(found[f"arr_{i}"] - array).max() < 1e-5 for i, array in enumerate(expected))
