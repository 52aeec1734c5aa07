"""The worked examples of CONTRIBUTING.md are real: their code runs, stacks, saves and loads as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import enxuto as ex
from enxuto.recipe import from_yaml, to_yaml
from enxuto.training.terms.table import TERMS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """The files of the examples as the modules they would be."""
    modules = {}
    names = ("functional.powers", "steps.powers", "functional.entropy", "training.terms.unsure")
    for name, code in zip(names, re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL), strict=True):
        module = types.ModuleType(f"enxuto.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, module.__name__, "exec"), module.__dict__)
        modules[name] = module
    return modules


def test_the_worked_example_stacks_with_other_steps_and_its_file_loads(
    examples: dict[str, types.ModuleType], tmp_path: Path
) -> None:
    powers = examples["steps.powers"]
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
    named = set(re.findall(r"`((?:src|tests|tools|docs|bench)/[\w/.]+\.\w+)`", TEXT))
    made = ("powers", "entropy", "unsure")
    assert {path for path in named if Path(path).stem.removeprefix("test_") not in made and not (root / path).exists()} == set()


def test_the_term_of_the_example_trains_and_stands_in_a_recipe(
    examples: dict[str, types.ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsure = examples["training.terms.unsure"].Unsure
    monkeypatch.setitem(TERMS, "Unsure", unsure)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    x = torch.randn(32, 8)
    train = [(x, model(x).detach().argmax(1))]
    task = ex.Task(model, calibration=[x], train=train, loss=torch.nn.functional.cross_entropy)
    sure = []
    for terms in ([], [unsure(1.0)]):
        steps = [ex.Prune(0.5), ex.Recover(epochs=60, learning_rate=1e-2, teacher=0.0, terms=terms)]
        assert from_yaml(to_yaml(steps)) == tuple(steps)
        small, _ = ex.run(task, steps)
        sure.append(float(torch.softmax(small(x).detach(), 1).amax(1).mean()))
    assert sure[1] < sure[0] - 0.05
    ex.save(small, tmp_path / "small.nxt", original=model)
    assert torch.equal(ex.load(tmp_path / "small.nxt", into=model)(x), small(x))
