"""Whatever file is packed comes back byte for byte; differences are exact; what is lost or lies is refused."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from enxuto import runtime
from enxuto.artifact import container, index
from enxuto.artifact.container import Reader, read, write
from enxuto.artifact.index import NUMPY
from enxuto.artifact.pack import REST, pack, unpack
from enxuto.artifact.packed import rest_section, spliced
from enxuto.coding.differences import added, difference
from enxuto.coding.repeats import repeating, write_matches
from enxuto.errors import ArtifactError, ExportError, OutputError
from enxuto.progress import listening

KEPT = sorted(set(NUMPY) - {"bool"})  # a file's booleans are kept as bytes


@st.composite
def pairs(draw):
    """Two arrays of one dtype, with any bits."""
    dtype, count = NUMPY[draw(st.sampled_from(KEPT))], draw(st.integers(1, 9))
    bits = arrays.arrays(np.uint8, count * dtype.itemsize)
    return draw(bits).view(dtype), draw(bits).view(dtype)


@given(pairs())
def test_a_difference_leads_back_for_every_bit_pattern(pair):
    own, other = pair
    change = difference(own, other)
    assert (change.dtype, change.shape) == (own.dtype, own.shape)
    assert added(change, other).tobytes() == own.tobytes()
    assert not difference(own, own).view(np.uint8).any()


@pytest.mark.parametrize("dtype", KEPT)
def test_values_that_close_the_ends_lead_back(dtype):
    wide = min(8, NUMPY[dtype].itemsize)
    edge = np.array([0, 1, 2 ** (8 * wide - 1) - 1, 2 ** (8 * wide - 1), 2 ** (8 * wide) - 1], f"u{wide}")
    a, b = (side.astype(edge.dtype).repeat(2).view(NUMPY[dtype]) for side in np.meshgrid(edge, edge))
    assert added(difference(a.reshape(-1), b.reshape(-1)), b.reshape(-1)).tobytes() == a.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64"])
def test_neighbours_differ_by_one_step_also_across_zero(dtype):
    if dtype.startswith("float"):
        values = np.array([-1.5, -0.0, 0.0, 1e-3, 2.0], dtype)
        near = np.nextafter(values, np.array(np.inf, dtype))
    else:
        values = np.array([-100, -1, 0, 99], dtype)
        near = values + np.array(1, dtype)
    for change in (difference(near, values), difference(values, near)):
        assert change.view(f"u{values.itemsize}").max() <= 4  # -0.0, 0.0 and the first number are two steps


def trained(rows=96, columns=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.05


def same(path, tmp_path, parent=None, **more):
    packed, back = tmp_path / "packed.nxt", tmp_path / "back"
    ledger = pack(path, packed, parent=parent, **more)
    assert sum(ledger.values()) == packed.stat().st_size
    assert unpack(packed, back, parent=parent) == path.stat().st_size
    return back.read_bytes() == path.read_bytes()


# safetensors

ALL = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64),
    *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64),
)


@pytest.mark.parametrize("fast", [False, True])
def test_a_safetensors_file_of_every_type_comes_back(fast, tmp_path):
    tensors = {str(dtype): (torch.randn(7, 5) * 10).to(torch.float32).abs().to(dtype) for dtype in ALL}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "none": torch.tensor([]), "ä/日": torch.ones(1)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt", "note": "any text ✓"})
    assert same(tmp_path / "x.safetensors", tmp_path, fast=fast)
    with Reader(tmp_path / "packed.nxt") as reader:
        assert (reader.entries["torch.float8_e5m2"].dtype, reader.entries["torch.bfloat16"].shape) == ("float8_e5m2", (7, 5))
        assert reader.array("torch.float64").tobytes() == tensors["torch.float64"].numpy().tobytes()


def hand_made(path, items, data):
    text = json.dumps(items).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_odd_booleans_nan_payloads_and_gaps_come_back(tmp_path):
    items = {
        "flags": {"dtype": "BOOL", "shape": [6], "data_offsets": [0, 6]},
        "nan": {"dtype": "F32", "shape": [3], "data_offsets": [9, 21]},
        "over": {"dtype": "U8", "shape": [4], "data_offsets": [18, 22]},
    }
    data = bytes([0, 1, 2, 255, 7, 1]) + b"gap" + bytes.fromhex("010080ff 0000c07f 00000080") + b"\x07 behind all tensors"
    assert same(hand_made(tmp_path / "x.safetensors", items, data), tmp_path)


def test_a_file_without_tensors_comes_back(tmp_path):
    assert same(hand_made(tmp_path / "x.safetensors", {}, b""), tmp_path)


def test_a_tensor_of_several_pieces_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PIECE", 1000)
    monkeypatch.setattr("enxuto.artifact.pack._LARGEST_WHOLE", 0)  # such small pieces cost more than the file as one
    wide = {"a": trained(37, 70), "flat": trained(1, 4321)[0], "wide": trained(2, 1777), "half": trained(50, 50).half()}
    save_file(wide, tmp_path / "x.safetensors")
    near = {name: value + (torch.rand(value.shape) < 0.1) * 1e-4 for name, value in wide.items()}
    save_file(near, tmp_path / "near.safetensors")
    assert same(tmp_path / "x.safetensors", tmp_path)
    with Reader(tmp_path / "packed.nxt") as reader:
        assert reader.entries["a"].streams == 3
        whole = reader.array("a").reshape(-1)
        for start, stop in ((0, 2590), (0, 1), (979, 981), (1500, 2590), (7, 7)):
            assert np.array_equal(reader.elements("a", start, stop), whole[start:stop])
    parent = tmp_path / "parent.nxt"
    pack(tmp_path / "x.safetensors", parent)
    assert same(tmp_path / "near.safetensors", tmp_path, parent=parent)
    assert same(tmp_path / "near.safetensors", tmp_path, parent=tmp_path / "x.safetensors")


def test_a_file_of_tens_of_thousands_of_tensors_comes_back(tmp_path):
    """Its index is longer than a text that is coded may be."""
    items = {
        f"layers.{i}.a.weight.with.a.long.name": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(30_000)
    }
    assert same(hand_made(tmp_path / "x.safetensors", items, os.urandom(30_000)), tmp_path)


# torch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.head.weight = self.embed.weight


@pytest.mark.filterwarnings("ignore")
def test_torch_checkpoints_of_all_kinds_come_back(tmp_path):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.head(net.norm(net.embed(torch.arange(9)))).sum().backward()
    optimizer.step()
    kept = {
        "state": net.state_dict(),
        "training": {
            "model": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
            "note": "text",
            "lr": [0.1, None],
        },
        "module": net,
        "parameter": nn.Parameter(trained()),
        "views": [trained().t(), trained()[::2, 3:], trained().half(), torch.randn(4, dtype=torch.complex128)],
        "quantized": torch.quantize_per_channel(trained(4, 4), torch.ones(4), torch.zeros(4), 0, torch.qint8),
        "sparse": trained().relu().to_sparse(),
        "nothing": {},
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 4),
    }
    for name, value in kept.items():
        torch.save(value, tmp_path / f"{name}.pt")
        assert same(tmp_path / f"{name}.pt", tmp_path), name
    back = torch.load(tmp_path / "back", weights_only=False)
    assert back.shape == (0, 4)


# ONNX


def test_onnx_files_of_all_kinds_come_back(tmp_path):
    weight = numpy_helper.from_array(trained(40, 60).numpy(), "w")
    plain = helper.make_tensor("b", TensorProto.FLOAT, [60], [0.25] * 60)
    nibbles = helper.make_tensor("q", TensorProto.INT4, [30, 2], [1, -2, 3] * 20)
    words = helper.make_tensor("s", TensorProto.STRING, [2], [b"one", b"two"])
    longs = helper.make_tensor("l", TensorProto.INT64, [3], [1, 2, 3])
    y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "branch",
        [],
        [z],
        [numpy_helper.from_array(trained(9, 9).numpy(), "inner")],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    model = helper.make_model(helper.make_graph([node], "g", [c], [y], [weight, plain, nibbles, words, longs]))
    onnx.save(model, tmp_path / "x.onnx")
    assert same(tmp_path / "x.onnx", tmp_path)
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ArtifactError, match=r"keeps a tensor in 'weights\.bin'"):
        pack(tmp_path / "outside.onnx", tmp_path / "outside.nxt")


# A parent


@pytest.fixture
def family(tmp_path):
    """A network, the same trained on, and both as torch checkpoints."""
    base = {"a": trained(), "b": trained(seed=1).bfloat16(), "c": trained(seed=2), "n": torch.arange(40)}
    tuned = {"a": base["a"].clone(), "b": base["b"].clone(), "c": trained(seed=3), "n": base["n"] + 1, "new": trained(seed=4)}
    tuned["a"][5] += 1e-5
    tuned["b"][::7] *= 1.01
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        torch.save(tensors, tmp_path / f"{name}.pt")
    return tmp_path


@pytest.mark.parametrize("parent", ["base.safetensors", "base.pt", "base.nxt", "base-pt.nxt"])
@pytest.mark.parametrize("child", ["tuned.safetensors", "tuned.pt"])
def test_a_file_close_to_its_parent_is_small_and_comes_back(family, child, parent):
    pack(family / "base.safetensors", family / "base.nxt")
    pack(family / "base.pt", family / "base-pt.nxt")
    pack(family / child, family / "alone.nxt")
    assert same(family / child, family, parent=family / parent)
    assert (family / "packed.nxt").stat().st_size < 0.7 * (family / "alone.nxt").stat().st_size
    with Reader(family / "packed.nxt") as reader:
        assert set(reader.meta["differences"]) == {"a", "b", "n"} or set(reader.meta["differences"]) == {"a", "b"}
        assert reader.meta["parent"] == parent


def test_an_onnx_file_has_a_parent_too(tmp_path):
    for name, shift in (("base", 0), ("tuned", 1e-6)):
        weight = numpy_helper.from_array(trained().numpy() + np.float32(shift), "w")
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        onnx.save(helper.make_model(helper.make_graph([], name, [], [y], [weight])), tmp_path / f"{name}.onnx")
    assert same(tmp_path / "tuned.onnx", tmp_path, parent=tmp_path / "base.onnx")
    with Reader(tmp_path / "packed.nxt") as reader:
        assert set(reader.meta["differences"]) == {"w"}


def test_the_difference_of_a_file_to_itself_is_nearly_nothing(family):
    assert same(family / "base.safetensors", family, parent=family / "base.safetensors")
    size, whole = (family / "packed.nxt").stat().st_size, (family / "base.safetensors").stat().st_size
    assert size < 500
    assert size < whole / 100


def test_a_parent_with_other_shapes_types_or_names_changes_nothing(family):
    others = {"a": trained(80, 96), "b": trained().half(), "z": trained()}
    save_file(others, family / "other.safetensors")
    assert same(family / "tuned.safetensors", family, parent=family / "other.safetensors")
    unpack(family / "packed.nxt", family / "back")  # without the parent: there is no difference to it
    assert (family / "back").read_bytes() == (family / "tuned.safetensors").read_bytes()


def test_the_wrong_parent_and_no_parent_are_refused(family):
    pack(family / "tuned.safetensors", family / "packed.nxt", parent=family / "base.safetensors")
    save_file({"a": trained(seed=9), "b": trained(seed=9).bfloat16()}, family / "wrong.safetensors")
    pack(family / "wrong.safetensors", family / "wrong.nxt")
    (family / "back").write_bytes(b"as it was")
    for parent, words in (
        (None, r"holds differences to 'base\.safetensors'; unpack it with that file as --parent"),
        (family / "wrong.safetensors", "is not that with which"),
        (family / "wrong.nxt", "is not that with which"),
        (family / "tuned.safetensors", "is not that with which"),
        (family / "packed.nxt", "holds differences"),
        (family / "none", "does not exist"),
        (family / "none.nxt", "does not exist"),
    ):
        with pytest.raises(ArtifactError, match=words):
            unpack(family / "packed.nxt", family / "back", parent=parent)
    assert (family / "back").read_bytes() == b"as it was"


def test_a_network_is_no_parent_and_is_not_unpacked(family):
    write(family / "net.nxt", {"edits": []}, [])
    for call in (
        lambda: unpack(family / "net.nxt", family / "back"),
        lambda: pack(family / "base.pt", family / "packed.nxt", parent=family / "net.nxt"),
    ):
        with pytest.raises(ArtifactError, match="holds a network, not a packed file"):
            call()
    with pytest.raises(ArtifactError, match="neither safetensors"):
        pack(family / "net.nxt", family / "packed.nxt")


# Where files go


def test_no_file_is_written_over_one_that_is_read(family):
    base, link = family / "base.safetensors", family / "link"
    link.symlink_to(base)
    before = base.read_bytes()
    pack(base, family / "base.nxt")
    packed = (family / "base.nxt").read_bytes()
    for call in (
        lambda: pack(base, base),
        lambda: pack(base, link),
        lambda: pack(family / "tuned.safetensors", base, parent=base),
        lambda: unpack(family / "base.nxt", family / "base.nxt"),
        lambda: unpack(family / "base.nxt", base, parent=base),
    ):
        with pytest.raises(OutputError, match="is read, so it is not written over; name another file"):
            call()
    assert (base.read_bytes(), (family / "base.nxt").read_bytes()) == (before, packed)


def test_where_nothing_can_be_written_the_error_says_so(family):
    pack(family / "base.pt", family / "base.nxt")
    for out in (family / "none" / "x", family):
        with pytest.raises(OutputError):
            pack(family / "base.pt", out)
        with pytest.raises(OutputError):
            unpack(family / "base.nxt", out)
    assert not list(family.glob(".*part"))


def test_a_damaged_packed_file_leaves_the_old_file(family):
    pack(family / "base.pt", family / "base.nxt")
    data = bytearray((family / "base.nxt").read_bytes())
    data[len(data) // 2] ^= 1
    (family / "base.nxt").write_bytes(data)
    (family / "back").write_bytes(b"as it was")
    with pytest.raises(ArtifactError, match="was altered"):
        unpack(family / "base.nxt", family / "back")
    assert (family / "back").read_bytes() == b"as it was"


def test_progress_is_told(family):
    heard = []
    with listening(lambda *said: heard.append(said)):
        pack(family / "base.pt", family / "base.nxt")
        unpack(family / "base.nxt", family / "back")
    for what in ("packing", "unpacking"):
        steps = [(done, total) for said, done, total in heard if said == what]
        assert steps == sorted(steps)
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1] > 0
        assert len(steps) >= 5


# Lies


def forged(family, change):
    pack(family / "tuned.safetensors", family / "good.nxt", parent=family / "base.safetensors")
    meta, sections = read(family / "good.nxt")
    change(meta, sections)
    write(family / "bad.nxt", meta, sections)


def turn(meta, key, value):
    meta[key] = value


LIES = {
    "no gaps": lambda meta, sections: meta.pop("gaps"),
    "gaps in words": lambda meta, sections: turn(meta, "gaps", ["x"] * len(meta["gaps"])),
    "a gap in halves": lambda meta, sections: turn(meta, "gaps", [gap + 0.0 for gap in meta["gaps"]]),
    "a gap that is true": lambda meta, sections: turn(meta, "gaps", [True, *meta["gaps"][1:]]),
    "gaps below zero": lambda meta, sections: turn(meta, "gaps", [meta["gaps"][0] + 1, -1, *meta["gaps"][2:]]),
    "gaps too long": lambda meta, sections: turn(meta, "gaps", [meta["gaps"][0] + 1, *meta["gaps"][1:]]),
    "gaps too many": lambda meta, sections: meta["gaps"].append(0),
    "gaps too few": lambda meta, sections: meta["gaps"].pop(),
    "no rest": lambda meta, sections: sections.pop(),
    "differences in a list": lambda meta, sections: turn(meta, "differences", [1]),
    "differences of nothing": lambda meta, sections: meta["differences"].update(z=1),
    "differences of the rest": lambda meta, sections: meta["differences"].update({REST: 1}),
    "a checksum in words": lambda meta, sections: meta["differences"].update(a="x"),
    "another checksum": lambda meta, sections: meta["differences"].update(a=1),
    "a difference of what the parent lacks": lambda meta, sections: meta["differences"].update(new=1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_packed_file_that_lies_is_refused(lie, family):
    forged(family, LIES[lie])
    with pytest.raises(ArtifactError):
        unpack(family / "bad.nxt", family / "back", parent=family / "base.safetensors")
    assert not (family / "back").exists()


def test_a_rest_of_another_type_is_refused(family):
    pack(family / "base.pt", family / "good.nxt")
    meta, sections = read(family / "good.nxt")
    rest = sections.pop()
    wide = rest.array.astype(np.uint32)
    write(family / "bad.nxt", meta, [*sections, container.Section(REST, "uint32", wide.shape, None, wide)])
    with pytest.raises(ArtifactError, match="says of itself what cannot be"):
        unpack(family / "bad.nxt", family / "back")


def test_killed_at_any_moment_the_old_file_or_the_new_one_is_there(tmp_path):
    """A process packs one of two files to the same place, over and over, and is killed a hundred times."""
    contents = set()
    for name, seed in (("a", 0), ("b", 1)):
        save_file({"w": trained(50, 60, seed)}, tmp_path / f"{name}.safetensors")
        pack(tmp_path / f"{name}.safetensors", tmp_path / "out.nxt")
        contents.add((tmp_path / "out.nxt").read_bytes())
    code = (
        "import os, sys, itertools, time\n"
        "from enxuto.cli.pack import pack\n"
        "from pathlib import Path\n"
        "a, b, out = map(Path, sys.argv[1:])\n"
        "pack(a, out, parent=None, fast=False, json=False, quiet=True, debug=True)\n"
        "start = time.monotonic()\n"
        "pack(a, out, parent=None, fast=False, json=False, quiet=True, debug=True)\n"
        "print('ready', time.monotonic() - start, sep='\\n', flush=True)\n"
        "for _ in iter(sys.stdin.readline, ''):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        sys.stdout = open(os.devnull, 'w')\n"
        "        for source in itertools.cycle((b, a)):\n"
        "            pack(source, out, parent=None, fast=False, json=False, quiet=True, debug=True)\n"
        "    print(child, flush=True)\n"
        "    os.waitpid(child, 0)\n"
        "    print('gone', flush=True)\n"
    )
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out.nxt"]
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, files)]
    chance, seen = random.Random(0), set()
    # The command is forked again and again, as starting Python and its kernels a hundred times would take minutes.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        once = float(process.stdout.readline())  # how long it takes to pack, here and now
        for _ in range(100):
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            time.sleep(chance.uniform(0, 4) * once)
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"
            found = (tmp_path / "out.nxt").read_bytes()
            assert found in contents
            seen.add(found)
        process.stdin.close()
    assert len(seen) == 2


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def test_weights_in_nodes_in_branches_and_in_functions_are_tensors(tmp_path):
    one, two, three = (np.random.default_rng(seed).normal(size=(20, 30)).astype(np.float32) for seed in range(3))
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [20, 30])
    branches = [helper.make_graph([constant("r", array)], "branch", [], [result]) for array in (two, two + 1)]
    domain = "stranger"
    function = helper.make_function(domain, "Three", [], ["t"], [constant("t", three)], [helper.make_opsetid("", 17)])
    nodes = [
        constant("one", one),
        helper.make_node("If", ["c"], ["both"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Three", [], ["third"], domain=domain),
        helper.make_node("Sum", ["one", "both", "third"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [20, 30])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    path = tmp_path / "nodes.onnx"
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets), path)
    same(path, tmp_path)
    with Reader(tmp_path / "packed.nxt") as reader:
        assert {name: entry.shape for name, entry in reader.entries.items() if name != REST} == {
            "one": (20, 30),
            "r": (20, 30),
            "r#2": (20, 30),
            "t": (20, 30),
        }
        assert np.array_equal(reader.array("one"), one)


def test_a_tensor_that_is_there_twice_is_kept_once(tmp_path):
    weight = trained()
    save_file({"embed": weight, "between": trained(seed=1), "head": weight.clone()}, tmp_path / "tied.safetensors")
    same(tmp_path / "tied.safetensors", tmp_path)
    tied = (tmp_path / "packed.nxt").stat().st_size
    save_file({"embed": weight, "between": trained(seed=1)}, tmp_path / "once.safetensors")
    same(tmp_path / "once.safetensors", tmp_path)
    assert tied < (tmp_path / "packed.nxt").stat().st_size + 150
    save_file({"embed": weight + 1e-6, "between": trained(seed=2), "head": weight + 1e-6}, tmp_path / "tuned.safetensors")
    same(tmp_path / "tuned.safetensors", tmp_path, parent=tmp_path / "tied.safetensors")


@pytest.mark.parametrize(
    "again",
    [
        *([[1, "x", "nobody"]], [[0, "x", "w"]], [[9, "x", "w"]], [["1", "x", "w"]], [[True, "x", "w"]], [[1, "w"]]),
        *([[1, "x", "w"], [1, "y", "w"]], [[2, "x", "w"], [1, "y", "w"]], [["w"]], [[1, 2, "w"]], [None], {"a": 1}, "w", 7),
    ],
)
@pytest.mark.parametrize("gaps", [0, 1, 2, 3])
def test_a_lie_about_what_is_there_twice_is_refused(tmp_path, again, gaps):
    write(
        tmp_path / "lie.nxt",
        {"packed": "onnx", "gaps": [0] * (1 + gaps), "again": again},
        [container.Section("w", "uint8", (4,), None, np.arange(4, dtype=np.uint8))],
    )
    with pytest.raises(ArtifactError, match="what cannot be"):
        unpack(tmp_path / "lie.nxt", tmp_path / "out")


def test_a_tensor_cannot_be_there_more_often_than_a_file_of_that_size_may_hold(tmp_path):
    again = [[1, f"x{number}", "w"] for number in range(40)]
    zeros = container.Section("w", "uint8", (1 << 22,), None, np.zeros(1 << 22, np.uint8))
    write(tmp_path / "bomb.nxt", {"packed": "onnx", "gaps": [0] * 42, "again": again}, [zeros])
    with pytest.raises(ArtifactError, match="what cannot be"):
        unpack(tmp_path / "bomb.nxt", tmp_path / "out")


def test_a_file_of_many_equal_constants_is_packed_all_the_same(tmp_path):
    save_file({f"zero{i}": torch.zeros(1 << 20) for i in range(20)}, tmp_path / "zeros.safetensors")
    same(tmp_path / "zeros.safetensors", tmp_path)


def test_a_file_that_repeats_itself_outside_of_tensors_is_kept_as_one_piece(tmp_path):
    passage = os.urandom(3000)
    node = helper.make_node("Identity", ["x"], ["y"])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]))
    for number in range(20):
        model.metadata_props.add(key=str(number), value=passage.hex())
    onnx.save(model, tmp_path / "talk.onnx")
    same(tmp_path / "talk.onnx", tmp_path)
    assert (tmp_path / "packed.nxt").stat().st_size < 6_000


def test_many_that_are_there_twice_stand_where_they_stood(tmp_path, monkeypatch):
    monkeypatch.setattr("enxuto.artifact.pack._LARGEST_WHOLE", 0)
    count = 3000
    header = {f"{n:05}": {"dtype": "U8", "shape": [2], "data_offsets": [2 * n, 2 * n + 2]} for n in range(count)}
    data = (np.arange(count) % 251).astype("<u2").tobytes()
    assert same(hand_made(tmp_path / "x.safetensors", header, data), tmp_path)
    with Reader(tmp_path / "packed.nxt") as reader:
        assert len(reader.meta["again"]) == count - 251


def words(length, count=3000, seed=0):
    """Bytes made of 200 words that are too short to be found as passages of 16, each with a byte of its own behind it."""
    chance = np.random.default_rng(seed)
    known = [chance.bytes(length) for _ in range(200)]
    return b"".join(known[number] + chance.bytes(1) for number in chance.integers(0, 200, count))


@pytest.mark.parametrize("length", [9, 12])
@pytest.mark.parametrize("place", ["behind", "tensors"])
def test_a_small_file_is_never_larger_than_matches_make_it(length, place, tmp_path):
    text = words(length)
    assert not repeating(np.frombuffer(text, np.uint8))
    weights = trained().numpy().tobytes()
    header = {"w": {"dtype": "F32", "shape": [96, 80], "data_offsets": [0, len(weights)]}}
    if place == "tensors":
        edges = np.linspace(len(weights), len(weights) + len(text), 61).astype(int).tolist()
        header |= {
            str(n): {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
            for n, (start, stop) in enumerate(itertools.pairwise(edges))
        }
    path = hand_made(tmp_path / "x.safetensors", header, weights + text)
    assert same(path, tmp_path)
    size = (tmp_path / "packed.nxt").stat().st_size
    assert 0.98 * size < len(write_matches(np.frombuffer(path.read_bytes(), np.uint8))) + 200
    with Reader(tmp_path / "packed.nxt") as reader:
        assert "matches" in reader.methods(reader.entries[REST])
        assert (len(reader.entries) == 1) == (place == "tensors")  # as one piece


def test_a_packed_parent_may_have_tensors_twice(tmp_path):
    base, near = trained(), trained() * 1.00001
    save_file({"a": base, "b": base.clone(), "c": base.reshape(80, 96).clone()}, tmp_path / "base.safetensors")
    save_file({"a": base, "b": near, "c": near.reshape(80, 96).clone()}, tmp_path / "tuned.safetensors")
    pack(tmp_path / "base.safetensors", tmp_path / "base.nxt")
    parents = [tmp_path / "base.safetensors", tmp_path / "base.nxt"]
    for packed_with in parents:
        pack(tmp_path / "tuned.safetensors", tmp_path / "tuned.nxt", parent=packed_with)
        with Reader(tmp_path / "tuned.nxt") as reader:
            assert "b" in reader.meta["differences"]
        for parent in parents:
            unpack(tmp_path / "tuned.nxt", tmp_path / "back", parent=parent)
            assert (tmp_path / "back").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_a_parent_that_was_packed_as_one_piece_has_its_tensors(kind, tmp_path):
    for name, shift in (("base", 0.0), ("tuned", 1e-6)):
        tensors = {"w": trained(300, 40).numpy() + np.float32(shift), "text": np.frombuffer(words(200, 300), np.uint8)}
        if kind == "safetensors":
            save_file({name: torch.tensor(value) for name, value in tensors.items()}, tmp_path / f"{name}.safetensors")
        else:
            y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
            kept = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
            onnx.save(helper.make_model(helper.make_graph([], name, [], [y], kept)), tmp_path / f"{name}.onnx")
    original, packed = tmp_path / f"base.{kind}", tmp_path / "base.nxt"
    write(packed, {"packed": kind, "name": "base", "gaps": [original.stat().st_size]}, [whole_section(original)])
    for parent in (original, packed):
        assert same(tmp_path / f"tuned.{kind}", tmp_path, parent=parent)
        with Reader(tmp_path / "packed.nxt") as reader:
            assert "w" in reader.meta["differences"]
        for other in (original, packed):
            unpack(tmp_path / "packed.nxt", tmp_path / "back", parent=other)
            assert (tmp_path / "back").read_bytes() == (tmp_path / f"tuned.{kind}").read_bytes()


def whole_section(path):
    return rest_section(path.read_bytes(), repeats=True)


def test_a_packed_file_of_nothing_is_no_graph(tmp_path):
    write(tmp_path / "empty.nxt", {"packed": "onnx", "name": "x", "gaps": [0]}, [])
    with pytest.raises(ArtifactError, match="empty"):
        unpack(tmp_path / "empty.nxt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with Reader(tmp_path / "empty.nxt") as reader:
        assert spliced(reader) == b""
    with pytest.raises(ExportError):
        runtime.open(tmp_path / "empty.nxt")
