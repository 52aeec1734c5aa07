"""The wheel and its extras: every package that is imported is declared, and a missing one says how to install it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import enxuto
from enxuto.errors import MissingPackageError
from enxuto.extras import EXTRAS, explained
from test_floors import MODULES, imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {"lightning-fabric": "lightning_fabric", "pyyaml": "yaml", "scikit-learn": "sklearn"}  # as they are imported
BROUGHT = {
    "markupsafe": "jinja2",
    "google": "onnx",
    "pytorch_lightning": "lightning",
}  # with another package, which has it as its own dependency
UNSEEN = {"onnxscript", "accelerate"}  # torch imports the one, in its exporter, and transformers the other, in its trainer
ELSEWHERE = {"torchao", "executorch"}


def imported() -> set[str]:
    """The roots of all packages that are imported anywhere and are neither ours nor Python's."""
    roots = {target.split(".")[0] for name in MODULES for target in imports(name, at_start=False)}
    return roots - {"enxuto", "__future__"} - sys.stdlib_module_names


def declared(names: list[str]) -> set[str]:
    found = {Requirement(text).name for text in names} - {"enxuto"}
    return {NAMES.get(name, name) for name in found}


def test_the_wheel_needs_only_what_reads_files():
    assert declared(PROJECT["dependencies"]) == {"numpy", "numba"}


def test_every_package_that_is_imported_is_declared_and_every_extra_is_imported():
    base = declared(PROJECT["dependencies"])
    assert imported() - ELSEWHERE - set(BROUGHT) == base | (set(EXTRAS) - set(BROUGHT) - UNSEEN)
    for package, extra in EXTRAS.items():
        assert BROUGHT.get(package, package) in declared(PROJECT["optional-dependencies"][extra]), package


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import enxuto.runtime", "enxuto.runtime needs onnxruntime, which is not installed; run pip install 'enxuto[run]'"),
        (
            "import enxuto; enxuto.compress",
            "enxuto.compress needs torch, which is not installed; run pip install 'enxuto[compress]'",
        ),
        ("import enxuto; enxuto.memory.predict", "enxuto.memory.predict needs torch"),
        ("import enxuto.cli", "the enxuto command needs typer"),
    ],
)
def test_what_is_missing_says_how_it_is_installed(code, words):
    hide = f"import sys, numpy, numba; sys.modules.update(dict.fromkeys({list(EXTRAS)!r})); "
    done = subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, check=False)
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_callback_says_how_the_trainer_it_is_for_is_installed(name, monkeypatch):
    for module in [name, *(each for each in sys.modules if each.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    monkeypatch.delitem(sys.modules, f"enxuto.{name}", raising=False)
    monkeypatch.delitem(vars(enxuto), name, raising=False)
    with pytest.raises(MissingPackageError, match=rf"ex.{name} needs {name}, which .*pip install 'enxuto\[{name}\]'"):
        getattr(enxuto, name)


def test_a_missing_package_that_is_none_of_ours_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError, match="strange"), explained("it"):
        raise ModuleNotFoundError("No module named 'strange'", name="strange")


def test_the_wheel_says_what_it_needs_and_carries_its_types(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("enxuto-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(wheel.read(metadata).decode())
    assert {Requirement(text).name for text in told.get_all("Requires-Dist", []) if "extra" not in text} == {"numpy", "numba"}
    assert {"run", "compress", "all", "lightning", "transformers"} <= set(told.get_all("Provides-Extra", []))
    assert {"enxuto/py.typed", "enxuto/device/nxt.h", "enxuto/reports/style.css"} <= set(names)
