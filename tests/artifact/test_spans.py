"""Tensors are found in files of other kinds; what lies, is damaged or wants to run code does no harm."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from enxuto.artifact.index import NUMPY
from enxuto.artifact.pack import pack, unpack
from enxuto.artifact.spans import REST, find_spans
from enxuto.errors import ArtifactError


def saved(value, path):
    torch.save(value, path)
    return path


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def zipped(path, pickled, storages=()):
    """A torch checkpoint made by hand: any pickle, and records of bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages:
            archive.writestr(f"archive/data/{key}", data)
    return path


def by_name(path):
    return {span.name: span for span in find_spans(path)[1]}


def comes_back(path, tmp_path):
    pack(path, tmp_path / "packed.nxt")
    unpack(tmp_path / "packed.nxt", tmp_path / "back")
    return (tmp_path / "back").read_bytes() == path.read_bytes()


# torch


def test_a_state_dict_is_tensors_with_names_types_and_shapes(tmp_path):
    state = {"a.weight": torch.randn(3, 5), "a.bias": torch.randn(3).half(), "n": torch.arange(4), "b": torch.randn(2).bfloat16()}
    kind, spans = find_spans(saved(state, tmp_path / "x.pt"))
    assert kind == "torch"
    found = {span.name: (span.dtype, span.shape) for span in spans}
    assert found == {
        "a.weight": ("float32", (3, 5)),
        "a.bias": ("float16", (3,)),
        "n": ("int64", (4,)),
        "b": ("bfloat16", (2,)),
    }
    data = (tmp_path / "x.pt").read_bytes()
    for span in spans:
        bits = np.frombuffer(data[span.offset : span.offset + span.nbytes], NUMPY[span.dtype])
        expected = state[span.name].view(torch.int16) if span.dtype == "bfloat16" else state[span.name]
        assert bits.tobytes() == expected.numpy().tobytes()


def test_a_checkpoint_with_an_optimizer_is_found_by_path(tmp_path):
    net = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    path = saved({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "list": [torch.ones(5)]}, tmp_path / "x.pt")
    found = by_name(path)
    assert {"model.weight", "model.bias", "optimizer.state.0.exp_avg", "optimizer.state.1.exp_avg_sq", "list.0"} <= set(found)
    assert found["optimizer.state.0.exp_avg"].shape == (3, 4)


def test_parameters_and_whole_modules_are_looked_into(tmp_path):
    found = by_name(saved({"p": nn.Parameter(torch.randn(6, 2))}, tmp_path / "p.pt"))
    assert (found["p"].dtype, found["p"].shape) == ("float32", (6, 2))
    shapes = {span.shape for span in by_name(saved(nn.Sequential(nn.Linear(4, 3)), tmp_path / "m.pt")).values()}
    assert shapes == {(3, 4), (3,)}


def test_tied_tensors_and_views_are_one_storage(tmp_path):
    whole = torch.randn(4, 6)
    path = saved({"row": whole[1], "all": whole, "again": whole, "turned": whole.t()}, tmp_path / "x.pt")
    (span,) = find_spans(path)[1]
    assert (span.name, span.shape, span.nbytes) == ("all", (4, 6), 96)


@pytest.mark.filterwarnings("ignore")
def test_storages_of_unknown_types_are_bytes(tmp_path):
    state = {
        "complex": torch.randn(3, dtype=torch.complex64),
        "eighth": torch.randn(6).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False, True]),
        "quantized": torch.quantize_per_tensor(torch.randn(5, 5), 0.1, 0, torch.qint8),
        "part": torch.arange(10)[2:5],
    }
    found = find_spans(saved(state, tmp_path / "x.pt"))[1]
    assert len(found) == 5  # also the one that no tensor which we understand lies on
    assert {span.dtype for span in found} == {"uint8"}
    assert sum(span.nbytes for span in found) == 24 + 6 + 3 + 25 + 80


def test_lists_that_hold_themselves_end(tmp_path):
    loop = [torch.ones(3)]
    loop.append(loop)
    assert list(by_name(saved({"loop": loop}, tmp_path / "x.pt"))) == ["loop.0"]


def test_lists_that_double_at_every_level_end(tmp_path):
    deep = [torch.ones(3)]
    for _ in range(60):
        deep = [deep, deep]
    assert len(find_spans(saved(deep, tmp_path / "x.pt"))[1]) == 1


def test_lists_nested_very_deep_end(tmp_path):
    pickled = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    assert find_spans(zipped(tmp_path / "x.pt", pickled, [("0", b"abcd")]))[1][0].dtype == "uint8"


def test_a_checkpoint_before_zip_files_is_refused_with_advice(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match=r"before 1\.6; load it and write it again"):
        find_spans(tmp_path / "old.pt")


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "touch PWNED"),
        Evil(os.mkdir, "PWNED"),
        Evil(exec, "open('PWNED', 'w')"),
        Evil(__import__, "this"),
        {"a": Evil(os.mkdir, "PWNED"), Evil(os.mkdir, "PWNED"): 1},
    ],
)
def test_nothing_that_a_pickle_names_is_called_or_imported(evil, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "x.pt", pickle.dumps(evil, protocol=2), [("0", bytes(range(64)))])
    assert comes_back(path, tmp_path)
    assert not (tmp_path / "PWNED").exists()
    assert capsys.readouterr().out == ""


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
REBUILT = b"ca\n_rebuild_tensor_v2\n("
DEEP = 500_000
HOSTILE = {
    "a huge memory": b"]r" + struct.pack("<I", 0x7FFFFFFF),
    "a key nested very deep": b"})" + b"\x85" * DEEP + b"K\x01s",
    "keys nested very deep, many at once": b"}(" + b"(" * DEEP + b"K\x01" + b"t" * DEEP + b"K\x01u",
    "a key doubled at every level": b"}K\x01\x85" + b"2\x86" * 45 + b"K\x01s",
    "a dict of a key doubled at every level": b"(K\x01\x85" + b"2\x86" * 45 + b"K\x01d",
    "a set of what is doubled at every level": b"\x8f(K\x01\x85" + b"2\x86" * 45 + b"\x90",
    "a frozen set of what is doubled at every level": b"(K\x01\x85" + b"2\x86" * 45 + b"\x91",
    "an ordered dict of pairs with such a key": b"ccollections\nOrderedDict\n(](K\x01\x85" + b"2\x86" * 45 + b"K\x01\x86etR",
    "a state nested very deep": b"ca\nb\n)R" + b")" + b"\x85" * DEEP + b"b",
    "calls nested very deep": b"ca\nb\n" + b")R" * DEEP,
    "a shape that is a product of lists": b"ca\n_rebuild_tensor_v2\n("
    + STORAGE
    + b"K\0(("
    + b"K\0" * 999
    + b"tJ\0\0\0\x7ftK\0tR",
    "a shape nested very deep": b"ca\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0)" + b"\x85" * DEEP + b"K\0tR",
    "a storage whose key is doubled": b"(X\x07\0\0\0storageNK\x01\x85" + b"2\x86" * 45 + b"NNtQ",
    "a stack of half a million": b"(" + b"N" * DEEP + b"l",
    "a shape of half a million axes": REBUILT + STORAGE + b"K\0(" + b"J\xff\xff\xff\x7f" * DEEP + b"tK\0tR",
    "the same arguments for many calls": b"(ca\nb\nq\1(" + b"N" * 20_000 + b"tq\0" + b"h\1h\0R" * 20_000 + b"l",
    "the same arguments for many storages": b"((NNN" + b"N" * (DEEP // 2) + b"tq\0" + b"h\0Q" * 300_000 + b"l",
    "a long key for many entries": b"}(X" + struct.pack("<I", 64 << 20) + b"k" * (64 << 20) + b"q\0)" + b"h\0)" * 100_000 + b"u",
    "plain items far below": b"}X" + struct.pack("<I", 1000) + b"k" * 1000 + b"](" + b"N" * DEEP + b"es",
    "nested items far below": b"}X" + struct.pack("<I", 1000) + b"k" * 1000 + b"](" + b")" * DEEP + b"es",
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_pickle_takes_time_and_memory_by_its_length_alone(hostile, tmp_path):
    """In a process of its own, which it might end: with 256 MB, of which torch and numba are not loaded here."""
    path = zipped(tmp_path / "x.pt", b"\x80\x04" + HOSTILE[hostile] + b".", [("0", b"abcd")])
    code = f"""
import json
from pathlib import Path
from enxuto.artifact.spans import find_spans
(span,) = find_spans(Path({str(path)!r}))[1]
print(json.dumps([span.nbytes, int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    nbytes, peak_kib = json.loads(done.stdout)
    assert nbytes == 4
    assert peak_kib < 1 << 18


@pytest.mark.parametrize("sizes", [(-1, -3), (True, 3), (1 << 63, 0), (1,) * 33 + (3,), (3.0,), 3])
def test_a_shape_that_is_none_makes_bytes_of_a_tensor(sizes, tmp_path):
    shape = pickle.dumps(sizes, protocol=2)[2:-1]
    pickled = b"\x80\x02" + REBUILT + STORAGE + b"K\0" + shape + b"K\0tR."
    (span,) = find_spans(zipped(tmp_path / "x.pt", pickled, [("0", bytes(12))]))[1]
    assert (span.dtype, span.shape) == ("uint8", (12,))


class Key:
    """Prints as its place in memory."""


def test_keys_that_are_objects_give_the_same_names_every_time(tmp_path):
    assert list(by_name(saved({Key(): torch.ones(3)}, tmp_path / "x.pt"))) == ["Key"]


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"\x80\x02}",
        b"\x80\x02h\x07.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R0N.",
        b"\x80\x02cx\ny\nb.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
        b"\x80\x02ca\n_rebuild_tensor_v2\n(K\x01K\x02K\x03tR.",
        b"\x80\x02ca\n_rebuild_tensor_v2\n(X\x01\x00\x00\x000K\x02K\x03tR.",
        b"\x80\x04\x95" + b"\xff" * 8 + b".",
        b"\x80\x02\x8f(K\x01\x90.",
        b"\x80\x02ca\nb\n)R(K\x01\x90.",
    ],
    ids=range(13),
)
def test_an_odd_pickle_is_refused_or_packed_but_never_breaks(pickled, tmp_path):
    path = zipped(tmp_path / "x.pt", pickled, [("0", b"abcdefgh")])
    with contextlib.suppress(ArtifactError):
        assert comes_back(path, tmp_path)


def test_a_zip_file_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ArtifactError, match=r"without data\.pkl"):
        find_spans(tmp_path / "x.zip")


@pytest.mark.parametrize("kind", ["torch", "safetensors", "onnx"])
def test_damage_anywhere_is_refused_or_comes_back(kind, tmp_path):
    """Flipped and missing bytes: an ArtifactError, or a file that is packed as it is; nothing else."""
    rng = np.random.default_rng(0)
    path = tmp_path / f"x.{kind}"
    if kind == "torch":
        torch.save({"a": torch.randn(5, 3), "b": [torch.arange(7), nn.Parameter(torch.randn(4))]}, path)
    elif kind == "onnx":
        onnx.save(small_onnx(), path)
    else:
        safetensors(path, {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16))
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)
        try:
            spans = find_spans(path)[1]
        except ArtifactError:
            continue
        assert all(a.offset + a.nbytes <= b.offset for a, b in itertools.pairwise(spans))


# safetensors


ITEM = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "item",
    [
        ITEM | {"shape": [-1, -2]},
        ITEM | {"shape": [2.0]},
        ITEM | {"shape": [True, 2]},
        ITEM | {"shape": [2**70]},
        ITEM | {"shape": []},
        ITEM | {"shape": [1] * 40 + [2]},
        ITEM | {"dtype": "F3"},
        ITEM | {"dtype": "BOOL", "shape": [8]},
        ITEM | {"data_offsets": [0.0, 8.0]},
    ],
    ids=str,
)
def test_a_tensor_that_contradicts_itself_is_kept_as_bytes(item, tmp_path):
    path = safetensors(tmp_path / "x.safetensors", {"a": item}, bytes(range(8)))
    ((span),) = find_spans(path)[1]
    assert (span.nbytes, span.dtype, span.shape) == (8, "uint8", (8,)) or item["shape"] == [2]
    assert comes_back(path, tmp_path)


@pytest.mark.parametrize(
    "offsets", [[8, 0], [0, 9], [-4, 4], [0, 10**30], [10**30, 10**30 + 8], [-(10**30), 0]], ids=lambda pair: f"{pair[0]:.0e}"
)
def test_offsets_outside_of_the_file_do_no_harm(offsets, tmp_path):
    path = safetensors(tmp_path / "x.safetensors", {"a": ITEM | {"data_offsets": offsets}}, bytes(range(8)))
    if max(offsets) > 8:
        with pytest.raises(ArtifactError, match="it was cut off"):
            pack(path, tmp_path / "packed.nxt")
    else:
        assert comes_back(path, tmp_path)


def test_a_file_that_was_cut_off_anywhere_is_not_packed(tmp_path):
    header = {"a": ITEM, "b": ITEM | {"data_offsets": [8, 16]}, "none": ITEM | {"shape": [0], "data_offsets": [16, 16]}}
    path = safetensors(tmp_path / "x.safetensors", header, bytes(range(16)))
    data = path.read_bytes()
    assert comes_back(path, tmp_path)
    for kept in range(1, len(data)):
        path.write_bytes(data[:kept])
        with pytest.raises(ArtifactError):
            pack(path, tmp_path / "cut.nxt")
    assert not (tmp_path / "cut.nxt").exists()


@pytest.mark.parametrize(
    "header",
    [
        b'{"a"',
        b"{}x",
        b'{"a": 5}',
        b'{"a": {}}',
        b'{"a": {"dtype": [], "shape": [], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": ["0", "1"]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, Infinity]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [NaN, 1]}}',
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0]}}',
        b'{"a":' + b"[" * 100_000,
        b"{\xff\xfe",
    ],
    ids=range(12),
)
def test_a_header_that_is_none_is_refused(header, tmp_path):
    with pytest.raises(ArtifactError, match="not that of safetensors"):
        find_spans(safetensors(tmp_path / "x.safetensors", header, bytes(8)))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(ArtifactError, match="does not fit"):
        find_spans(tmp_path / "x.safetensors")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from([REST, "a", "a#2", "a#2#2", "header", "", "\0", " ", "ä", "\ud800", "?"]), max_size=8))
def test_every_tensor_gets_a_name_of_its_own(names, tmp_path):
    """JSON may name one twice, or with letters that are none; names that we would give may be there already."""
    items = (
        f'{json.dumps(name)}:{{"dtype":"U16","shape":[1],"data_offsets":[{2 * i},{2 * i + 2}]}}' for i, name in enumerate(names)
    )
    path = safetensors(tmp_path / "x.safetensors", f"{{{','.join(items)}}}".encode(), os.urandom(2 * len(names)))
    found = [span.name for span in find_spans(path)[1]]
    assert len(set(found)) == len(found)
    assert comes_back(path, tmp_path)


# ONNX


def small_onnx(kind=TensorProto.FLOAT):
    weight = numpy_helper.from_array(np.arange(24, dtype=np.float32).reshape(4, 6), "w")
    bias = helper.make_tensor("b", TensorProto.FLOAT, [6], [0.5] * 6)  # float_data, not raw
    nibbles = helper.make_tensor("q", TensorProto.INT4, [3, 2], [1, -2, 3, 4, -5, 6])
    half = numpy_helper.from_array(np.ones(5, np.float16), "h")
    x = helper.make_tensor_value_info("x", kind, ["n", 4])
    y = helper.make_tensor_value_info("y", kind, ["n", 6])
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], "g", [x], [y], [weight, bias, nibbles, half])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_raw_float_and_int4_data_of_an_onnx_file_are_found(tmp_path):
    onnx.save(small_onnx(), tmp_path / "x.onnx")
    found = {name: (span.dtype, span.shape) for name, span in by_name(tmp_path / "x.onnx").items()}
    assert found == {"w": ("float32", (4, 6)), "b": ("float32", (6,)), "h": ("float16", (5,))}  # int4 stays where it is
    assert comes_back(tmp_path / "x.onnx", tmp_path)


def test_a_long_name_of_a_node_with_many_tensors_takes_no_memory_for_each(tmp_path):
    node = helper.make_node("Odd", [], ["k" * 200_000], domain="mine")
    for number in range(400):
        tensor = numpy_helper.from_array(np.full(300, number, np.int16))
        node.attribute.append(helper.make_attribute(f"a{number}", tensor))
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), tmp_path / "x.onnx")
    tracemalloc.start()
    spans = find_spans(tmp_path / "x.onnx")[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({span.name for span in spans}) == len(spans) == 400
    assert peak < 10 * (tmp_path / "x.onnx").stat().st_size
    assert comes_back(tmp_path / "x.onnx", tmp_path)


def test_many_tensors_of_one_name_are_numbered_by_counting_once(tmp_path, monkeypatch):
    told = []

    def counted(start):
        for number in itertools.count(start):
            told.append(number)
            yield number

    monkeypatch.setattr("enxuto.artifact.spans.count", counted)
    kept = [numpy_helper.from_array(np.full(3, n, np.int16), name) for n, name in enumerate([*"x" * 300, "x#2", "x#2"])]
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], kept)), tmp_path / "x.onnx")
    names = [span.name for span in find_spans(tmp_path / "x.onnx")[1]]
    assert names == ["x", *(f"x#{n}" for n in range(2, 301)), "x#2#2", "x#2#3"]
    assert len(told) < 310


def test_an_onnx_file_whose_ninth_byte_is_a_brace_is_an_onnx_file(tmp_path):
    odd = b"\x08\x8a\x80\x80\x80\x80\x00\x12{" + b"x" * 123 + small_onnx().SerializeToString()  # a number in its long form
    (tmp_path / "x.onnx").write_bytes(odd)
    assert odd[8:9] == b"{"
    assert find_spans(tmp_path / "x.onnx")[0] == "onnx"


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"garbage that is no protobuf", b"\xff" * 40, b"\x3a\xff\xff\xff\x7f", b"\x0b\x0c"]
)
def test_garbage_named_onnx_is_refused_or_comes_back(content, tmp_path):
    (tmp_path / "x.onnx").write_bytes(content)
    with contextlib.suppress(ArtifactError):
        assert comes_back(tmp_path / "x.onnx", tmp_path)


def test_a_truncated_onnx_file_is_refused(tmp_path):
    data = small_onnx().SerializeToString()
    (tmp_path / "x.onnx").write_bytes(data[:-20])
    with pytest.raises(ArtifactError, match="does not fit"):
        find_spans(tmp_path / "x.onnx")


def test_foreign_missing_and_unreadable_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("only text, and longer than nine letters")
    for name, words in (("x.txt", "neither safetensors"), ("none", "does not exist"), (".", "is not a file")):
        with pytest.raises(ArtifactError, match=words):
            find_spans(tmp_path / name)
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ArtifactError, match="cannot be read: Permission denied"):
        find_spans(tmp_path / "x.txt")
