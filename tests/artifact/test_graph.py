"""A file with its graph runs without its network and gives what torch gives; its weights decode to the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto import runtime, zoo
from enxuto.artifact.container import Reader, read, write
from enxuto.artifact.graph import GRAPH, decoded, onnx_bytes
from enxuto.artifact.pack import pack
from enxuto.errors import ArtifactError, ExportError
from enxuto.sites import sites
from enxuto.surgery import to_float
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, seeded

NETWORKS = ("lenet-300-100", "lenet-5", "resnet-8", "transformer", "gru")


def small_zoo(name):
    return zoo.build(name, image_size=8)


def images():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def kept(model, batch, path, original=None):
    """The entries of the ledger of the model, saved with its graph."""
    return ex.save(model, path, original=original, graph=[batch])


def check(model, batch, path, fresh, original=None):
    """What the file must do: run like torch, decode to the layers' own bits, load as before, explain its bytes."""
    entries = kept(model, batch, path, original)
    expected = output(model, batch).numpy()
    found = runtime.open(path)(batch.numpy())
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    with Reader(path) as reader:
        for name, tensor in to_float(model).state_dict().items():
            assert decoded(reader, name).tobytes() == tensor.numpy().tobytes(), name
    loaded = ex.load(path, into=fresh)
    assert torch.equal(output(loaded, batch), output(model, batch))
    assert sum(entry.bytes for entry in entries) == path.stat().st_size
    assert {"graph", "header"} <= {entry.kind for entry in entries}
    return entries


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_zoo_runs_from_its_file(name, tmp_path):
    model, batch = seeded(small_zoo, name), images()
    check(model, batch, tmp_path / "a.nxt", small_zoo(name), model)


def test_a_folded_network_runs_from_its_file(tmp_path):
    model, batch = seeded(small_zoo, "resnet-8"), images()
    small, _ = ex.run(ex.Task(model, calibration=[batch]), [ex.Fold(), ex.Quantize(8)])
    entries = check(small, batch, tmp_path / "a.nxt", small_zoo("resnet-8"), model)
    assert sum(entry.bytes for entry in entries if entry.kind == "graph") < 6000


STEPS = {
    "prune": [ex.Prune(0.7)],
    "share": [ex.Share(bits=4, biases=8)],
    "share of one bit": [ex.Share(bits=1)],
    "quantize": [ex.Quantize(8, biases=8)],
    "quantize a tensor": [ex.Quantize(5, per="tensor")],
    "one bit": [ex.Quantize(1)],
    "groups": [ex.Quantize(4, "fc*", per="group", group=4)],
    "integers": [ex.Quantize(8, activations=8)],
    "channels": [ex.PruneChannels(sparsity=0.25), ex.Quantize(4)],
    "factorize": [ex.Factorize(rank=3), ex.Quantize(8)],
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
def test_a_compressed_network_runs_from_its_file(kind, steps, tmp_path):
    model, batch = seeded(kind), inputs(kind)
    try:
        small, _ = ex.run(ex.Task(model, calibration=[batch]), STEPS[steps])
    except ex.Error as error:
        pytest.skip(str(error))
    if steps == "integers":
        kept(small, batch, tmp_path / "a.nxt", model)
        found = runtime.open(tmp_path / "a.nxt")(batch.numpy())
        assert np.abs(found - output(small, batch).numpy()).max() < 0.05  # the graph is in fp32: grids of inputs are not in it
        return
    check(small, batch, tmp_path / "a.nxt", seeded(kind, seed=1), model)


@pytest.mark.parametrize("step", [None, ex.Share(bits=4), ex.Quantize(8)], ids=str)
def test_tied_weights_are_kept_once(step, tmp_path):
    model, batch = seeded(Tied), torch.randint(0, 64, (3, 5))
    small = step(model, ex.Task(model, calibration=[batch]))[0] if step else model
    check(small, batch, tmp_path / "a.nxt", seeded(Tied, seed=1), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("step", [None, ex.Quantize(8)], ids=str)
def test_a_network_of_another_dtype_runs_or_is_refused(dtype, step, tmp_path):
    model, batch = seeded(Mlp).to(dtype), inputs(Mlp).to(dtype)
    small = step(model, ex.Task(model, calibration=[batch]))[0] if step else model
    try:
        kept(small, batch, tmp_path / "a.nxt", model)
    except ExportError:
        assert not (tmp_path / "a.nxt").exists()
        return
    found = runtime.open(tmp_path / "a.nxt")(batch.numpy())
    assert np.abs(found - output(small, batch).numpy()).max() < 1e-2
    assert torch.equal(output(ex.load(tmp_path / "a.nxt", into=seeded(Mlp).to(dtype)), batch), output(small, batch))


def test_the_weights_are_not_kept_twice(tmp_path):
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10)).eval()
    batch = torch.randn(4, 100)
    small, _ = ex.run(ex.Task(model, calibration=[batch]), [ex.Quantize(4)])
    entries = kept(small, batch, tmp_path / "a.nxt", model)
    ex.save(small, tmp_path / "b.nxt", original=model)
    assert (tmp_path / "a.nxt").stat().st_size - (tmp_path / "b.nxt").stat().st_size < 1500
    assert sum(entry.bytes for entry in entries if entry.kind == "graph") < 1200
    assert len(list(sites(small))) == 2


def test_a_result_needs_no_samples_and_a_model_does(tmp_path):
    model = seeded(Mlp)
    with pytest.raises(ExportError, match=r"needs sample inputs to trace the graph with; give graph=\[batch\]"):
        ex.save(model, tmp_path / "a.nxt", graph=True)
    assert not (tmp_path / "a.nxt").exists()
    result = ex.compress(ex.Task(model, calibration=[inputs(Mlp)]), steps=[ex.Quantize(8)])
    ex.save(result, tmp_path / "a.nxt", graph=True)
    found = runtime.open(tmp_path / "a.nxt")(inputs(Mlp).numpy())
    assert np.abs(found - output(result.model, inputs(Mlp)).numpy()).max() < 1e-5


# Lies


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    model, path = seeded(Mlp), tmp_path_factory.mktemp("good") / "good.nxt"
    small, _ = ex.Share(bits=4)(model, ex.Task(model, calibration=[inputs(Mlp)]))
    kept(small, inputs(Mlp), path, model)
    return path


@pytest.fixture
def file(good, tmp_path):
    return Path(shutil.copy(good, tmp_path / "good.nxt"))


def forged(path, change):
    meta, sections = read(path)
    change(meta["graph"], meta)
    write(path, meta, sections)


LIES = {
    "no gaps": lambda graph, meta: graph.pop("gaps"),
    "gaps in words": lambda graph, meta: graph.update(gaps=["x"] * len(graph["gaps"])),
    "gaps that are one number": lambda graph, meta: graph.update(gaps=7),
    "a gap below zero": lambda graph, meta: graph.update(gaps=[graph["gaps"][0] + 1, -1, *graph["gaps"][2:]]),
    "gaps too long": lambda graph, meta: graph.update(gaps=[graph["gaps"][0] + 1, *graph["gaps"][1:]]),
    "gaps too many": lambda graph, meta: graph["gaps"].append(0),
    "constants too few": lambda graph, meta: graph["constants"].pop(),
    "a constant of another name": lambda graph, meta: graph["constants"][0].__setitem__(0, "nothing"),
    "a constant that is a number": lambda graph, meta: graph["constants"].__setitem__(0, 5),
    "a name that is a number": lambda graph, meta: graph["constants"][0].__setitem__(0, 5),
    "a name that is a list": lambda graph, meta: graph["constants"][0].__setitem__(0, []),
    "no name": lambda graph, meta: graph["constants"].__setitem__(0, []),
    "constants in words": lambda graph, meta: graph.update(constants="abc"),
    "same in a list": lambda graph, meta: meta.update(same=[1]),
    "same in numbers": lambda graph, meta: meta.update(same={"fc1.weight": 3}),
    "a list for a graph": lambda graph, meta: meta.update(graph=[]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_graph_that_lies_is_refused(lie, file):
    forged(file, LIES[lie])
    with pytest.raises(ArtifactError):
        runtime.open(file)


def test_a_graph_that_names_a_constant_again_and_again_is_refused(tmp_path):
    def change(graph, meta):
        graph.update(gaps=[*graph["gaps"], *[0] * 100_000], constants=[*graph["constants"], *[["fc.weight"]] * 100_000])

    model = nn.Sequential()
    model.fc = nn.Linear(1000, 1000, bias=False)
    nn.init.zeros_(model.fc.weight)
    kept(model, torch.randn(2, 1000), tmp_path / "a.nxt")
    forged(tmp_path / "a.nxt", change)
    with pytest.raises(ArtifactError, match="does not fit its tensors"):
        runtime.open(tmp_path / "a.nxt")


def test_a_file_without_a_graph_says_how_to_get_one(tmp_path):
    ex.save(seeded(Mlp), tmp_path / "a.nxt")
    with pytest.raises(
        ArtifactError, match=r"carries no graph that could be run; write it with enxuto\.save\(\.\.\., graph=True\)"
    ):
        runtime.open(tmp_path / "a.nxt")
    torch.save(seeded(Mlp).state_dict(), tmp_path / "x.pt")
    pack(tmp_path / "x.pt", tmp_path / "x.nxt")
    with pytest.raises(ArtifactError, match="carries no graph"):
        runtime.open(tmp_path / "x.nxt")


def test_the_graph_is_the_onnx_file_itself(tmp_path):
    model = seeded(Mlp)
    kept(model, inputs(Mlp), tmp_path / "a.nxt")
    ex.export(model, tmp_path / "a.onnx", calibration=[inputs(Mlp)])
    with Reader(tmp_path / "a.nxt") as reader:
        data = onnx_bytes(reader)
        assert [name for name in reader.entries if name.startswith(GRAPH)] == [GRAPH]
    assert data == (tmp_path / "a.onnx").read_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
