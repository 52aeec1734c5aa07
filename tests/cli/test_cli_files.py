"""The commands on real files: one small network, compressed from the command line, and everything that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from enxuto.cli import app

TASK = """
import torch
from torch import nn
from enxuto.task import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.fc1 = nn.Linear(8 * 36, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))

def task():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.fc1.weight[:, ::2] = 0
    return Task(net, calibration=[torch.randn(16, 1, 8, 8)])
"""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "a_real_task.py"
    path.write_text(TASK)
    return path


@pytest.fixture(scope="module")
def compressed(task_file: Path) -> dict[str, Any]:
    """What `enxuto compress --json` prints, in a process of its own; its files are in `out` beside the task file."""
    recipe = task_file.with_name("recipe.yaml")
    recipe.write_text("- step: Quantize\n  bits: 4\n")
    out = task_file.with_name("out")
    command = [sys.executable, "-m", "enxuto", "compress", task_file, "--recipe", recipe, "--out", out, "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_compress_prints_what_it_wrote(compressed: dict[str, Any], task_file: Path) -> None:
    out = task_file.with_name("out")
    written = json.loads((out / "result.json").read_text())
    assert {name: value for name, value in compressed.items() if name not in ("files", "created")} == {
        name: value for name, value in written.items() if name != "created"
    }
    assert set(compressed["files"]) == {"small.nxt", "small.onnx", "report.html", "result.json"}
    assert compressed["compressed"]["file_bytes"] == (out / "small.nxt").stat().st_size
    assert compressed["compression"] > 4


def test_inspect_finds_the_bytes_macs_and_zeros_of_every_layer(task_file: Path) -> None:
    found = answer("inspect", task_file)
    layers = {layer["path"]: layer for layer in found["layers"]}
    assert list(layers) == ["conv", "fc1", "fc2", "(everything else)"]
    assert layers["conv"]["parameters"] == 8 * 9 + 8
    assert layers["conv"]["macs"] == 8 * 9 * 36
    assert layers["fc1"]["macs"] == 8 * 36 * 32
    assert layers["fc1"]["bytes"] == 4 * layers["fc1"]["parameters"]
    assert layers["fc1"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert all(layer["time_ms"] > 0 for path, layer in layers.items() if path != "(everything else)")
    assert found["parameters"] == sum(layer["parameters"] for layer in found["layers"])


def test_inspect_shows_zeros_in_words(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # room for the words on one line, however long the times are
    assert "Linear, 50% zeros" in run("inspect", task_file).stdout


def test_inspect_explains_every_byte_of_a_file(compressed: dict[str, Any], task_file: Path) -> None:
    path = task_file.with_name("out") / "small.nxt"
    found = answer("inspect", path)
    assert found["file_bytes"] == path.stat().st_size
    assert sum(layer["bytes"] for layer in found["layers"]) == found["file_bytes"]
    assert sum(found["kinds"].values()) == found["file_bytes"]
    assert f"{found['file_bytes']:,} bytes" in run("inspect", path).stdout


def test_inspect_counts_constants_and_operators_of_an_onnx_file(compressed: dict[str, Any], task_file: Path) -> None:
    path = task_file.with_name("out") / "original.onnx"
    found = answer("inspect", path)
    assert found["constants"]["float"]["values"] == compressed["original"]["parameters"]
    assert found["constants"]["float"]["bytes"] == 4 * compressed["original"]["parameters"]
    assert (found["operators"]["Conv"], found["operators"]["Gemm"]) == (1, 2)
    assert sum(found["float_operators"].values()) == 3
    assert "Gemm" in run("inspect", path).stdout


def test_evaluate_measures_the_file_beside_the_original(compressed: dict[str, Any], task_file: Path) -> None:
    found = answer("evaluate", task_file, task_file.with_name("out"))
    for which in ("original", "compressed"):
        for name in ("file_bytes", "quality", "parameters", "macs"):
            assert found[which][name] == compressed[which][name]
        assert found[which]["latency_ms"] > 0
        assert found[which]["peak_memory_bytes"] >= 0
    assert found["quality_change"] == compressed["quality_change"]
    assert found["compression"] == compressed["compression"]


def test_export_writes_a_file_that_inspect_reads(compressed: dict[str, Any], task_file: Path) -> None:
    out = task_file.with_name("out")
    path = task_file.with_name("exported") / "net.onnx"
    found = answer("export", task_file, out / "small.nxt", "-o", path, "--precision", "int8")
    assert (found["precision"], found["file_bytes"]) == ("int8", path.stat().st_size)
    assert answer("inspect", path)["constants"]["int8"]["values"] >= 8 * 36 * 32


MEASURED = ("file_bytes", "quality", "peak_memory_bytes", "precision")


def test_compare_shows_two_results_and_their_difference(compressed: dict[str, Any], task_file: Path) -> None:
    out = task_file.with_name("out")
    found = answer("compare", out / "small.nxt", out / "original.onnx")
    assert found["a"]["file_bytes"] == (out / "small.nxt").stat().st_size
    assert found["b"]["file_bytes"] == (out / "original.onnx").stat().st_size
    assert found["compression"] == found["a"]["file_bytes"] / found["b"]["file_bytes"]
    same = answer("compare", out, out)
    artifact, exported = json.loads((out / "result.json").read_text())["ship"]
    for whole, part in ((same, artifact), (same["exports"], exported)):  # each file with its own figures
        assert whole["a"] == whole["b"]
        assert {name: whole["a"][name] for name in MEASURED} == {name: part[name] for name in MEASURED}
        assert whole["a"]["latency_ms"] is None  # of two runs, perhaps of two machines
    assert artifact["latency_ms"] is None
    assert same["quality_change"] == 0
    assert "the same" in run("compare", out, out).stdout


def test_report_writes_the_page_of_a_result(compressed: dict[str, Any], task_file: Path) -> None:
    path = task_file.with_name("page.html")
    found = answer("report", task_file.with_name("out"), "-o", path)
    assert found["file_bytes"] == path.stat().st_size
    assert "<html" in path.read_text()


def test_report_shows_what_layers_lose_where_that_lies_beside_the_result(
    compressed: dict[str, Any], task_file: Path, tmp_path: Path
) -> None:
    shutil.copy(task_file.with_name("out") / "result.json", tmp_path)
    answer("report", tmp_path)
    assert "What each layer loses" not in (tmp_path / "report.html").read_text()
    answer("inspect", task_file, "--sensitivity", "--out", tmp_path)
    answer("report", tmp_path)
    assert "What each layer loses" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "missing.nxt"], "does not exist"),
        (["inspect", "missing.onnx"], "cannot be read as ONNX"),
        (["inspect", "notes.txt"], "give a task file"),
        (["inspect", "broken.nxt", "--out", "out"], "give --sensitivity with it"),
        (["inspect", "broken.nxt", "--sensitivity"], "give a task file"),
        (["inspect", "broken.onnx"], "cannot be read as ONNX"),
        (["inspect", "broken.nxt"], "broken.nxt"),
        (["compare", "missing.nxt", "broken.nxt"], "'missing.nxt' does not exist"),
        (["compare", ".", "broken.nxt"], "holds no result.json"),
        (["compare", "notes.txt", "broken.nxt"], "no result by its name"),
        (["evaluate", "missing.py"], "enxuto init"),
        (["export", "missing.py", "missing.nxt"], "'missing.nxt' does not exist"),
        (["export", "missing.py", "broken.nxt", "-o", "net.tflite"], "write -o net.onnx"),
        (["report", "."], "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "broken.onnx", "broken.nxt"):
        Path(name).write_text("nothing of the kind")
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


COMMANDS = ("init", "inspect", "compress", "evaluate", "compare", "export", "report", "demo", "pack", "unpack")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count(f"enxuto {command}") >= 2
    for option in ("--json", "--quiet", "--debug"):
        assert option in result.stdout


def test_help_names_every_command_and_the_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("--help").stdout
    assert all(f" {command} " in shown for command in COMMANDS)
    assert "130 Ctrl-C" in shown


def test_the_command_line_loads_nothing_heavy_before_it_must() -> None:
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "jinja2", "sklearn")
    code = f"import sys, enxuto.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_wrong_use_is_exit_code_2_in_a_real_process() -> None:
    command = [sys.executable, "-m", "enxuto", "compress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "TASK.PY" in done.stderr


@pytest.mark.parametrize("command", [("evaluate",), ("export",)])
def test_a_damaged_file_is_found_before_the_task_file_runs(
    command: tuple[str, ...], compressed: dict[str, Any], tmp_path: Path
) -> None:
    whole = Path(compressed["files"]["small.nxt"]).read_bytes()
    (tmp_path / "cut.nxt").write_bytes(whole[:-9])
    (tmp_path / "late.py").write_text("raise SystemExit('the task file ran')")
    answer = run(*command, tmp_path / "late.py", tmp_path / "cut.nxt")
    assert answer.exit_code == 2
    assert "was altered or cut off" in answer.stderr
    assert "the task file ran" not in answer.stderr


def test_inspect_shows_what_each_layer_loses_and_keeps_it(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # where heads break hangs on the figures below them
    found = answer("inspect", task_file, "--sensitivity", "--out", tmp_path)
    assert [layer["path"] for layer in found["layers"]] == ["conv", "fc1", "fc2"]
    assert all(loss["error"] > 0 if loss["bytes"] else loss["why"] for loss in found["layers"][1]["losses"])
    kept = list(tmp_path.iterdir())
    shown = run("inspect", task_file, "--sensitivity", "--out", tmp_path)
    assert shown.exit_code == 0
    assert list(tmp_path.iterdir()) == kept
    for words in ("Net: outputs move", "fewer bits", "50% zeros", "25% of the weights", "fc1", "kB"):
        assert words in shown.stdout
