"""`enxuto compress`, `demo` and `init`, with a compression that costs nothing in the place of the real one."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from enxuto import zoo
from enxuto.artifact.save import Entry
from enxuto.cli import app
from enxuto.cli import demo as demo_module
from enxuto.evaluation.measurement import Evaluation, Measurement
from enxuto.recipe import to_yaml
from enxuto.result import Result
from enxuto.steps.quantize import Quantize
from enxuto.task import Target, Task

TASK = """
import torch
from enxuto.task import Task

def task():
    print("a word from the task file")
    return Task(torch.nn.Linear(4, 3), calibration=[torch.ones(2, 4)])
"""


@dataclass
class Compression:
    """Stands in for enxuto.compression.compress: remembers what it was asked, and answers as told."""

    met: bool = True
    error: BaseException | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, task: Task, **wanted: Any) -> Result:
        self.asked.append(wanted | {"seed": task.seed})
        if self.error is not None:
            raise self.error
        artifact = Path(wanted["out"]) / "small.nxt"
        artifact.write_bytes(b"small")
        (Path(wanted["out"]) / "result.json").write_text("{}")
        shared: dict[str, Any] = {"quality": 0.9, "parameters": 15, "macs": 12, "latency_ms": None, "precision": "none"}
        shared |= {"latency_samples_ms": (), "peak_memory_bytes": None}
        evaluation = Evaluation(
            original=Measurement(file_bytes=100, **shared),
            compressed=Measurement(file_bytes=5, **shared),
            quality_name="agreement",
            quality_change=0.0,
            quality_change_interval=None,
            samples=0,
            notes=("something must be said",),
        )
        return Result(
            task=task,
            model=task.model,
            steps=(Quantize(bits=4),),
            record=(),
            ledger=(Entry("", "header", "header", 5),),
            before=(),
            evaluation=evaluation,
            artifact=artifact,
            target=wanted["target"],
            met=self.met,
            verdict=(f"size 5 B of at most 9 B: {'met' if self.met else 'missed'}",),
            advice=() if self.met else ("ask for less",),
        )


@pytest.fixture
def compression(monkeypatch: pytest.MonkeyPatch) -> Compression:
    stand_in = Compression()
    monkeypatch.setattr(importlib.import_module("enxuto.compression"), "compress", stand_in)
    return stand_in


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*importlib.import_module("sys").path])
    (tmp_path / "a_task.py").write_text(TASK)
    return "a_task.py"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_goal_reaches_the_search_as_it_was_written(compression: Compression, task_file: str) -> None:
    words = "--size 100kB --compression 20 --macs 50% --latency 0.7 --max-drop 0.5% --time 20m --seed 3 --out here --memory 2GB"
    result = run("compress", task_file, *words.split())
    assert result.exit_code == 0, result.stderr
    wanted = Target(size=100_000, compression=20, macs=0.5, latency=0.7, max_drop=0.005)
    asked = {"steps": None, "target": wanted, "time": 1200.0, "out": Path("here"), "memory": "2GB", "seed": 3}
    assert compression.asked == [asked]


def test_a_recipe_reaches_the_run_as_its_steps(compression: Compression, task_file: str) -> None:
    Path("recipe.yaml").write_text(to_yaml([Quantize(bits=4)]))
    assert run("compress", task_file, "--recipe", "recipe.yaml").exit_code == 0
    assert compression.asked[0]["steps"] == (Quantize(bits=4),)
    assert compression.asked[0]["target"] is None


def test_the_summary_the_verdict_and_the_files_are_shown(compression: Compression, task_file: str) -> None:
    result = run("compress", task_file, "--size", "9B", "--out", "here")
    for words in (
        "100 B became 5 B",
        "20.0× smaller",
        "at most 9 B: met",
        "note: something must be said",
        "here/small.nxt",
    ):
        assert words in result.stdout
    assert Path("here/report.html").is_file()


def test_a_missed_goal_is_exit_code_3_with_files_and_advice(compression: Compression, task_file: str) -> None:
    compression.met = False
    result = run("compress", task_file, "--size", "9B")
    assert result.exit_code == 3
    assert "missed" in result.stdout
    assert "ask for less" in result.stdout
    assert Path("out/small.nxt").is_file()


def test_json_is_all_there_is_on_stdout(compression: Compression, task_file: str) -> None:
    compression.met = False
    result = run("compress", task_file, "--size", "9B", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 3
    assert (answer["met"], answer["compressed"]["file_bytes"], answer["compression"]) == (False, 5, 20.0)
    assert answer["files"]["small.nxt"] == "out/small.nxt"
    assert "a word from the task file" in result.stderr


def test_quiet_leaves_out_the_remarks(compression: Compression, task_file: str) -> None:
    result = run("compress", task_file, "--size", "9B", "--quiet")
    assert "note:" not in result.stdout
    assert "at most 9 B: met" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no goal was given"),
        (["--size", "10kg"], "'10kg'"),
        (["--time", "soon", "--size", "1kB"], "'soon'"),
        (["--macs", "2"], "macs=2.0"),
        (["--recipe", "missing.yaml"], "missing.yaml"),
        (["--recipe", "a_task.py", "--max-drop", "1%"], "--max-drop and --recipe were both given"),
        (["--recipe", "a_task.py", "--time", "1m"], "--time and --recipe were both given"),
    ],
)
def test_a_wrong_goal_is_found_before_the_task_file_runs(
    compression: Compression, task_file: str, options: list[str], words: str
) -> None:
    result = run("compress", task_file, *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "a word from the task file" not in result.stdout
    assert not compression.asked
    assert not Path("out").exists()


def test_a_recipe_file_with_an_unknown_step_is_named(compression: Compression, task_file: str) -> None:
    Path("recipe.yaml").write_text("- step: Shrink\n")
    result = run("compress", task_file, "--recipe", "recipe.yaml")
    assert result.exit_code == 2
    assert "'recipe.yaml'" in result.stderr
    assert "'Shrink'" in result.stderr


def test_an_output_folder_that_cannot_be_written_is_found_before_the_task_file_runs(
    compression: Compression, task_file: str
) -> None:
    result = run("compress", task_file, "--size", "9B", "--out", f"{task_file}/out")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert "a word from the task file" not in result.stdout


def test_ctrl_c_with_nothing_found_is_exit_code_130(compression: Compression, task_file: str) -> None:
    compression.error = KeyboardInterrupt()
    result = run("compress", task_file, "--size", "9B")
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.stderr


def test_an_unexpected_error_is_exit_code_1(compression: Compression, task_file: str) -> None:
    compression.error = ZeroDivisionError("of some kind")
    result = run("compress", task_file, "--size", "9B")
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError: of some kind" in result.stderr


def test_init_writes_a_task_file_that_defines_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    result = run("init", str(path))
    assert result.exit_code == 0
    text = path.read_text()
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec", dont_inherit=True), names)
    assert callable(names["task"])
    assert f"enxuto compress {path}" in text


def test_init_never_overwrites_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("my work")
    result = run("init", str(path))
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert path.read_text() == "my work"
    assert json.loads(run("init", str(path), "--force", "--json").stdout) == {"task": str(path)}
    assert "def task()" in path.read_text()


def test_init_refuses_a_name_that_no_task_file_has(tmp_path: Path) -> None:
    assert run("init", str(tmp_path / "task.txt")).exit_code == 2
    assert run("init", str(tmp_path / "no" / "folder.py")).exit_code == 2


@pytest.mark.parametrize(("goal", "searched"), [((), False), (("--size", "15kB", "--time", "5s"), True)])
def test_the_demo_runs_its_recipe_and_searches_only_for_a_goal(
    goal: tuple[str, ...], searched: bool, compression: Compression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a goal nothing hangs on the clock: a busy machine gives the same bytes."""
    trained: dict[str, Any] = {}

    def untrained(name: str, dataset: Any, **wanted: Any) -> torch.nn.Module:
        trained.update(wanted, name=name, data=dataset.name)
        return zoo.build(name)

    monkeypatch.setattr(zoo, "trained", untrained)
    monkeypatch.setenv("ENXUTO_CACHE", str(tmp_path / "cache"))
    result = run("demo", "--data", "digits", "--out", str(tmp_path / "out"), *goal)
    assert result.exit_code == 0, result.stderr
    assert (trained["name"], trained["data"]) == ("resnet-8", "digits")
    assert trained["sizes"] == {"widths": demo_module.WIDTHS, "stem_stride": 1}
    assert trained["cache"] == tmp_path / "cache"
    asked = compression.asked[0]
    if searched:
        assert (asked["target"].size, asked["steps"], asked["time"]) == (15_000, None, 5.0)
    else:
        assert (asked["target"], asked["steps"], asked["time"]) == (None, demo_module.recipe(trained["epochs"]), None)


def test_a_demo_on_a_folder_without_data_says_so(compression: Compression, tmp_path: Path) -> None:
    result = run("demo", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "train-images-idx3-ubyte" in result.stderr


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENXUTO_CACHE", "/somewhere")
    assert demo_module.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("ENXUTO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert demo_module.cache_folder() == Path("/xdg/enxuto")


def test_what_init_prints_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "my nets.py"
    answer = run("init", str(path))
    assert f"enxuto compress '{path}' --size" in answer.stdout
    assert f"enxuto inspect '{path}'" in path.read_text()
