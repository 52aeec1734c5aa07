"""`enxuto memory`: the tables, the files, JSON for scripts, and what is wrong found before the task file runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from enxuto import memory
from enxuto.cli import app

TASK = """
import torch
import torch.nn.functional as F
from torch import nn
from enxuto.task import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.fc = nn.Linear(8 * 36, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))

def task():
    print("a word from the task file")
    x = torch.randn(16, 1, 8, 8)
    return Task(Net(), calibration=[x], name="little net"{more})
"""
TRAIN = ", train=[(x, torch.randint(10, (16,)))], loss=F.cross_entropy"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["memory", *map(str, arguments)])


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*importlib.import_module("sys").path])


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    (tmp_path / "a_task.py").write_text(TASK.replace("{more}", TRAIN))
    return tmp_path / "a_task.py"


def test_inference_and_training_stand_beside_each_other_with_the_place_of_the_peak(task_file: Path) -> None:
    shown = run(task_file)
    assert shown.exit_code == 0, shown.stderr
    for words in (
        "little net: memory at the fullest moment",
        "training step",
        "optimizer states",
        "activations",
        "batch 16",
        "training step, predicted: fullest in",
        "the layers that hold most then",
        "fc",
    ):
        assert words in shown.stdout


def test_the_numbers_are_those_of_predict(task_file: Path) -> None:
    found = answer(task_file, "--batch-size", 32, "--optimizer", "sgd")
    inference, training = found["runs"]
    assert (inference["what"], training["what"], training["batch"]) == ("inference", "training step", 32)
    namespace: dict[str, Any] = {}
    exec(compile(task_file.read_text(), "a_task", "exec", dont_inherit=True), namespace)
    task = namespace["task"]()
    batch = task.train[0]
    wanted = memory.predict(task.model, batch, loss=F.cross_entropy, optimizer=torch.optim.SGD, batch_size=32)
    assert training["predicted"]["peak_bytes"] == wanted.peak_bytes
    assert training["predicted"]["by_category"] == wanted.by_category
    assert training["predicted"]["by_category"]["optimizer states"] == 0
    assert inference["predicted"]["peak_bytes"] == memory.predict(task.model, task.sample, batch_size=32).peak_bytes
    assert training["recorded"] is None
    assert sum(layer["bytes"] for layer in training["predicted"]["layers"]) == wanted.peak_bytes


def test_adam_holds_two_numbers_a_weight_and_half_precision_half_the_bytes(task_file: Path) -> None:
    plain = answer(task_file)["runs"]
    half = answer(task_file, "--precision", "bf16-true")["runs"]
    weights = plain[0]["predicted"]["by_category"]["weights"]
    assert half[0]["predicted"]["by_category"]["weights"] * 2 == weights
    states = plain[1]["predicted"]["by_category"]["optimizer states"]
    assert 2 * weights <= states <= 2 * weights + 64


def test_recording_shows_the_measured_beside_the_predicted_with_the_process(task_file: Path) -> None:
    found = answer(task_file, "--record")
    for each in found["runs"]:
        assert each["recorded"]["peak_bytes"] >= each["predicted"]["by_category"]["weights"]
        assert each["recorded"]["seconds"] > 0
        assert each["recorded"]["peak_rss_bytes"] > 10_000_000 or not Path("/proc").exists()
    shown = run(task_file, "--record").stdout
    assert shown.count("predicted: fullest in") == shown.count("recorded: fullest in") == 2
    assert "(RSS)" in shown or not Path("/proc").exists()


def test_a_task_without_training_data_has_an_inference_alone(tmp_path: Path) -> None:
    (tmp_path / "b_task.py").write_text(TASK.replace("{more}", ""))
    assert [each["what"] for each in answer(tmp_path / "b_task.py")["runs"]] == ["inference"]
    assert "training" not in run(tmp_path / "b_task.py").stdout


@pytest.mark.parametrize("kind", ["svg", "png", "html", "json"])
def test_each_kind_of_file_is_written_and_named(task_file: Path, kind: str) -> None:
    path = task_file.with_name(f"memory.{kind}")
    shown = run(task_file, "--out", path)
    assert shown.exit_code == 0, shown.stderr
    assert f"memory.{kind}" in shown.stdout
    assert path.stat().st_size > 1000
    if kind == "json":
        assert memory.Profile.load(path).peak_bytes == answer(task_file)["runs"][1]["predicted"]["peak_bytes"]
    if kind == "html":
        assert 'id="memory-2-time-0"' in path.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "memory.pdf"], "'memory.pdf'"),
        (["--out", "a_task.py/memory.svg"], "cannot be written"),
        (["--optimizer", "lion"], "lion"),
        (["--precision", "int8"], "int8"),
        (["--batch-size", "0"], "equal to 1"),
        (["--limit", "lots"], "'lots'"),
        (["--device", "cortexm4"], "cortex-m4"),
        (["--devices", "none.yaml"], "none.yaml"),
    ],
)
def test_a_wrong_option_is_found_before_the_task_file_runs(
    task_file: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(task_file.parent)
    result = run("a_task.py", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "a word from the task file" not in result.stdout


def test_a_loss_that_fails_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "c_task.py").write_text(TASK.replace("{more}", ", train=[(x, x)], loss=lambda a, b: F.nll_loss(a, 3)"))
    result = run(tmp_path / "c_task.py", "--json")
    assert result.exit_code == 2
    assert "the training step fails" in json.loads(result.stdout)["error"]


def test_a_real_process_prints_one_document_and_leaves_one_file(task_file: Path) -> None:
    command = [sys.executable, "-m", "enxuto", "memory", str(task_file), "--json", "--out", str(task_file.with_name("m.svg"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"][1]["predicted"]["peak_bytes"] > found["runs"][0]["predicted"]["peak_bytes"]
    assert "a word from the task file" in done.stderr
    assert task_file.with_name("m.svg").read_text().startswith("<?xml")


def test_a_limit_gives_a_table_of_ways_to_train_that_keep_it(task_file: Path) -> None:
    peak = answer(task_file)["runs"][1]["predicted"]["peak_bytes"]
    limit = str(int(0.8 * peak))
    found = answer(task_file, "--limit", limit)["plan"]
    assert found["limit_bytes"] == int(limit)
    assert found["options"]
    assert all(option["peak_bytes"] <= int(limit) for option in found["options"])
    assert {"lightning", "transformers", "recover"} == set(found["options"][0]["settings"])
    shown = run(task_file, "--limit", limit).stdout
    assert "16 samples an update within" in shown
    assert f"without any change: {found['largest_batch']}" in shown


def test_a_limit_needs_something_to_train_on_and_room_for_the_weights(task_file: Path, tmp_path: Path) -> None:
    (tmp_path / "b_task.py").write_text(TASK.replace("{more}", ""))
    assert "no train and loss" in run(tmp_path / "b_task.py", "--limit", "1 GB").stderr
    assert "the weights of the model alone take" in run(task_file, "--limit", "10 B").stderr
    assert "limit='much' is not understood" in run(task_file, "--limit", "much").stderr


def test_devices_are_asked_in_floats_and_in_bytes(task_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("thimble: {ram: 100 B, flash: 100 B}\n")
    found = answer(task_file, "--device", "thimble", "--device", "phone", "--devices", tmp_path / "mine.yaml")["devices"]
    assert [(it["device"], it["bits"], it["fits"]) for it in found] == [
        *[("thimble", 32, False), ("thimble", 8, False)],
        *[("phone", 32, True), ("phone", 8, True)],
    ]
    shown = run(task_file, "--device", "thimble", "--devices", tmp_path / "mine.yaml").stdout
    assert "does not fit thimble" in shown
    assert "device='teapot' is not known" in run(task_file, "--device", "teapot").stderr
