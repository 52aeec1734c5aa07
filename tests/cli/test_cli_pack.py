"""`enxuto pack`, `enxuto unpack` and `enxuto inspect --coders` on real files."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import enxuto as ex
from enxuto.artifact.container import write
from enxuto.artifact.sections import Section
from enxuto.cli import app


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    base = {"a": torch.randn(64, 50) * 0.1, "b": torch.arange(30)}
    save_file(base, tmp_path / "base.safetensors")
    save_file({"a": base["a"] * 1.0001, "b": base["b"]}, tmp_path / "tuned.safetensors")
    torch.save(base, tmp_path / "base.pt")
    return tmp_path


def test_pack_and_unpack_give_the_file_back_and_say_so(files: Path) -> None:
    found = answer("pack", files / "base.safetensors")
    assert found["file"] == str(files / "base.nxt")
    assert found["file_bytes"] == sum(found["tensors"].values()) == (files / "base.nxt").stat().st_size
    assert found["original_bytes"] == (files / "base.safetensors").stat().st_size
    assert found["ratio"] == found["file_bytes"] / found["original_bytes"] < 1
    back = answer("unpack", files / "base.nxt", "-o", files / "back")
    assert back == {"file": str(files / "back"), "file_bytes": found["original_bytes"]}
    assert (files / "back").read_bytes() == (files / "base.safetensors").read_bytes()


def test_words_name_the_file_and_what_is_left_of_it(files: Path) -> None:
    assert "% of" in run("pack", files / "base.pt", "-o", files / "x.nxt").stdout
    assert str(files / "y") in run("unpack", files / "x.nxt", "-o", files / "y").stdout


def test_a_difference_needs_its_parent(files: Path) -> None:
    alone = answer("pack", files / "tuned.safetensors", "-o", files / "alone.nxt")
    close = answer("pack", files / "tuned.safetensors", "-o", files / "close.nxt", "--delta", files / "base.safetensors")
    assert close["file_bytes"] < alone["file_bytes"]
    refused = run("unpack", files / "close.nxt", "-o", files / "back")
    assert (refused.exit_code, "--parent" in refused.stderr) == (2, True)
    answer("unpack", files / "close.nxt", "-o", files / "back", "--parent", files / "base.safetensors")
    assert (files / "back").read_bytes() == (files / "tuned.safetensors").read_bytes()


def test_a_file_that_nobody_named_is_not_replaced(files: Path) -> None:
    (files / "base.nxt").write_text("a network")
    for arguments in (("pack", files / "base.pt"), ("pack", files / "base.safetensors")):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert "is there already and was left alone; name the file to write with -o" in refused.stderr
    assert (files / "base.nxt").read_text() == "a network"
    answer("pack", files / "base.pt", "-o", files / "base.nxt")  # a named one is
    assert "is there already" in run("unpack", files / "base.nxt").stderr
    (files / "base.pt").unlink()
    assert answer("unpack", files / "base.nxt")["file"] == str(files / "base.pt")


def test_a_name_in_the_file_does_not_lead_out_of_the_folder(files: Path) -> None:
    (files / "in").mkdir()
    for number, name in enumerate(("../evil", "/tmp/evil", "..", ".", "", 5, None)):
        path = files / "in" / f"{number}.nxt"
        write(path, {"packed": "torch", "name": name, "gaps": [0]}, [])
        run("unpack", path)
    assert not (files / "evil").exists()
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pack", "none.pt"], "does not exist"),
        (["pack", "."], "is not a file"),
        (["pack", "text.pt"], "neither safetensors"),
        (["pack", "base.pt", "-o", "base.pt"], "is read, so it is not written over"),
        (["pack", "base.pt", "-o", "none/x.nxt"], "could not be written"),
        (["pack", "base.pt", "--parent", "none.pt"], "does not exist"),
        (["unpack", "none.nxt"], "does not exist"),
        (["unpack", "base.pt"], "is no .nxt file"),
        (["unpack", "text.pt", "-o", "x"], "is no .nxt file"),
        (["inspect", "base.onnx", "--coders"], "has no coders to show"),
    ],
)
def test_what_does_not_work_is_one_line(files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.chdir(files)
    Path("text.pt").write_text("nothing of the kind")
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_bar_is_shown_on_a_terminal(tmp_path: Path) -> None:
    save_file({str(i): torch.randn(400, 500) for i in range(20)}, tmp_path / "x.safetensors")
    for command in (("pack", "x.safetensors", "-o", "x.nxt"), ("unpack", "x.nxt", "-o", "back")):
        ours, theirs = pty.openpty()
        words = [sys.executable, "-m", "enxuto", *command]
        with subprocess.Popen(words, stderr=theirs, stdout=subprocess.PIPE, cwd=tmp_path, env=dict(os.environ)) as process:
            os.close(theirs)
            shown = b""
            try:
                while part := os.read(ours, 4096):
                    shown += part
            except OSError:  # the terminal is gone with the process
                pass
            assert process.wait(60) == 0
        os.close(ours)
        assert f"{command[0]}ing".encode() in shown


# inspect


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.nxt"
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
    steps = [ex.Prune(0.8), ex.Quantize(4, biases=8)]
    small, _ = ex.run(ex.Task(model, calibration=[torch.randn(4, 200)]), steps)
    ex.save(small, path, original=model, graph=[torch.randn(4, 200)])
    return path


def test_every_byte_is_of_a_kind(network: Path) -> None:
    found = answer("inspect", network)
    assert {"payload", "grid", "bias", "graph", "header"} <= set(found["kinds"])
    assert sum(found["kinds"].values()) == network.stat().st_size
    assert sum(layer["bytes"] for layer in found["layers"]) == network.stat().st_size
    shown = run("inspect", network).stdout
    assert all(kind in shown for kind in found["kinds"])


def test_tables_are_a_kind_of_their_own(files: Path) -> None:
    answer("pack", files / "base.pt", "-o", files / "fast.nxt", "--fast")
    found = answer("inspect", files / "fast.nxt")
    assert found["kinds"]["table"] > 20
    assert sum(found["kinds"].values()) == found["file_bytes"]


def test_coders_shows_what_each_would_take_and_the_smallest_is_used(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = answer("inspect", network, "--coders")["tensors"]
    assert len(rows) >= 7
    for row in rows:
        assert "raw" in row["bytes"]
        least = min(row["bytes"].values())
        if row["shared"]:  # a stream of several tensors, of which each has its share
            assert row["used_bytes"] < least + 40, row
        else:
            assert row["bytes"][row["used"]] == row["used_bytes"] <= least + 1, row
    assert any(row["shared"] for row in rows)
    coded = {row["tensor"]: row for row in rows if row["entropy"] is not None}
    weight = coded["0.coded.weight.codes"]
    assert weight["elements"] == 60_000
    assert weight["used_bytes"] < 1.02 * weight["entropy"] + 40 < weight["bytes"]["raw"]
    shown = run("inspect", network, "--coders").stdout
    assert "entropy" in shown
    assert "adaptive" in shown


def test_coders_of_nothing_and_of_odd_tensors(tmp_path: Path) -> None:
    arrays = {
        "none": np.zeros((0, 3), np.float32),
        "one": np.float64(3),
        "flags": np.array([True, False]),
        "z": np.zeros(99, "<c8"),
    }
    write(
        tmp_path / "x.nxt",
        {},
        [Section(n, np.asarray(a).dtype.name, np.shape(a), None, np.asarray(a)) for n, a in arrays.items()],
    )
    rows = {row["tensor"]: row for row in answer("inspect", tmp_path / "x.nxt", "--coders")["tensors"]}
    assert (rows["none"]["used"], rows["none"]["bytes"], rows["none"]["used_bytes"]) == ("", {}, 0)
    assert rows["z"]["used"] == "constant"
    assert run("inspect", tmp_path / "x.nxt", "--coders").exit_code == 0
