"""From a Python file to its Task: what works, and one clear error for everything that does not."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from enxuto.cli.taskfile import load_task
from enxuto.errors import TaskError
from enxuto.evaluation.fresh import in_fresh_process
from enxuto.progress import listening

GOOD = """
import torch
from enxuto.task import Task

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)

def task():
    return Task(Net(), calibration=[torch.ones(2, 4)])
"""
BROKEN = {
    "x = (\n": ["line 1", "was never closed"],
    "x = 1\n": ["defines no `task`", "enxuto init"],
    "task = 3\n": ["gives int", "not an enxuto.Task"],
    "def task():\n    return None\n": ["line 1", "gives NoneType"],
    "def task(model):\n    return model\n": ["line 1", "'model'", "default value"],
    "import no_such_module_at_all\n": ["line 1", "ModuleNotFoundError", "no_such_module_at_all"],
    "def task():\n    x = 1\n    return 1 / 0\n": ["line 3", "ZeroDivisionError"],
    "raise SystemExit(4)\n": ["line 1", "SystemExit"],
    "a = 1\nfrom enxuto.task import Task\ntask = Task(None, calibration=[])\n": ["line 3", "not a torch.nn.Module"],
    "x = '\0'\n": ["null"],
}


@pytest.fixture(autouse=True)
def _imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not getattr(sys.modules[name], "__file__", "") or "pytest-" in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "task_for_a_test.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_function_named_task_is_called(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert type(task.model).__name__ == "Net"
    assert task.seed == 0


def test_a_task_itself_will_do_as_well(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD.replace("def task():\n    return ", "task = ")))
    assert type(task.model).__name__ == "Net"


def test_the_seed_goes_into_the_task_and_makes_its_weights_repeatable(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with torch.random.fork_rng():
        one, same, other = (load_task(path, seed) for seed in (7, 7, 8))
    assert (one.seed, other.seed) == (7, 8)
    assert torch.equal(one.model.fc.weight, same.model.fc.weight)
    assert not torch.equal(one.model.fc.weight, other.model.fc.weight)


def test_a_file_without_a_seed_gives_the_same_network_each_time(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with torch.random.fork_rng():
        one = load_task(path)
        torch.rand(3)
        assert torch.equal(one.model.fc.weight, load_task(path).model.fc.weight)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_named_with_its_line_and_what_to_do(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TaskError) as caught:
        load_task(path)
    for words in [str(path), *BROKEN[text]]:
        assert words in str(caught.value)


def test_a_missing_file_a_folder_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"does not exist; write one with `enxuto init"):
        load_task(tmp_path / "missing.py")
    with pytest.raises(TaskError, match=r"no Python file"):
        load_task(tmp_path)
    with pytest.raises(TaskError, match=r"no Python file"):
        load_task(write(tmp_path, GOOD, "task.txt"))


def test_modules_beside_the_file_are_found(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a_network_beside_the_task.py")
    task = load_task(write(tmp_path, "from a_network_beside_the_task import task\n"))
    assert type(task.model).__name__ == "Net"


def test_a_file_named_like_a_module_in_use_does_not_hide_it(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD, "random.py"))
    assert sys.modules["random"] is random
    assert type(task.model).__module__ == "enxuto_task_file_random"


def test_classes_of_the_file_reach_a_fresh_process_without_running_the_file_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    counted = f"with open({str(runs)!r}, 'a') as file:\n    file.write('x')\n"
    task = load_task(write(tmp_path, counted + GOOD))
    there = in_fresh_process(task.model, task.sample)
    assert torch.equal(there, task.model(task.sample))
    assert runs.read_text() == "x"


def test_the_row_of_a_task_file_ends_with_its_run(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    path = tmp_path / "task.py"
    path.write_text(GOOD)
    with listening(lambda what, done, total: heard.append((what, done, total))):
        load_task(path)
    assert heard == [("running task.py", 0, 0), ("running task.py", 1, 1)]
