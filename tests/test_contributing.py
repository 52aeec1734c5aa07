"""The worked example of CONTRIBUTING.md is real: its code runs, stacks, saves and loads as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import enxuto as ex

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def powers(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The two files of the example as the modules they would be."""
    modules = []
    for name, code in zip(
        ("functional.powers", "steps.powers"), re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL), strict=True
    ):
        module = types.ModuleType(f"enxuto.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, module.__name__, "exec"), module.__dict__)
        modules.append(module)
    return modules[1]


def test_the_worked_example_stacks_with_other_steps_and_its_file_loads(powers: types.ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    task = ex.Task(model, calibration=[torch.randn(4, 8)])
    small, records = ex.run(task, [ex.Prune(0.5), powers.Powers(), ex.Share(bits=4)])
    values = small[0].weight
    assert int((values == 0).sum()) >= values.numel() // 4, "zeros stay through the step"
    exponents = values[values != 0].abs().log2()
    assert torch.equal(exponents, exponents.round()), "few powers of two are shared exactly"
    assert [change.path for change in records[1].changes] == ["0.weight", "2.weight"]
    ex.save(small, tmp_path / "small.nxt", original=model)
    assert torch.equal(ex.load(tmp_path / "small.nxt", into=model)(task.calibration[0]), small(task.calibration[0]))
    with pytest.raises(ex.Error, match="would change nothing"):
        ex.run(ex.Task(small, calibration=task.calibration), [powers.Powers()])


def test_the_files_that_the_guide_names_are_there() -> None:
    root = Path(__file__).parents[1]
    named = set(re.findall(r"`((?:src|tests|tools|docs|bench)/[\w/.]+\.\w+)`", TEXT)) - {"src/enxuto/functional/powers.py"}
    assert {path for path in named if "powers" not in path and not (root / path).exists()} == set()
