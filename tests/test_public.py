import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import enxuto


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_sorted_and_these():
    assert enxuto.__all__ == sorted(enxuto.__all__)
    assert enxuto.__all__ == [
        *("Change", "Equalize", "Error", "Factorize", "Fold", "Prune", "PruneChannels", "Quantize", "Record", "Recover"),
        *("Regrow", "Repair", "Result", "Schedule", "Sensitivity", "Share", "Target", "Task", "Tune", "allocate", "compress"),
        *("convert", "evaluate", "export", "invent", "keep_decoded_", "ledger", "load", "memory", "prepare", "report", "rewind"),
        *("run", "save", "sensitivity", "terms"),
    ]
    assert dir(enxuto) == enxuto.__all__
    assert sorted([*enxuto._HOMES, *enxuto._ROOMS]) == enxuto.__all__


@pytest.mark.parametrize("name", enxuto._ROOMS)
def test_every_public_room_says_its_names(name):
    room = getattr(enxuto, name)
    assert room is importlib.import_module(f"enxuto.{enxuto._ROOMS[name]}")
    assert room.__all__ == sorted(room.__all__)
    assert all(getattr(room, verb).__doc__ for verb in room.__all__)


@pytest.mark.parametrize("name", enxuto._HOMES)
def test_every_public_name_resolves_to_what_its_home_says(name):
    value = getattr(enxuto, name)
    home = importlib.import_module(f"enxuto.{enxuto._HOMES[name]}")
    assert value is getattr(home, name)
    assert callable(value)
    assert value.__doc__


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(enxuto.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname or alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    rooms = {name: f"enxuto.{home}".rpartition(".")[0] for name, home in enxuto._ROOMS.items()}
    assert told == {name: f"enxuto.{home}" for name, home in enxuto._HOMES.items()} | rooms


def test_verbs_stay_verbs_when_their_rooms_are_imported():
    code = (
        "import enxuto, enxuto.compression, enxuto.verbs, enxuto.evaluation.compare, enxuto.exporters.onnx, enxuto.reports.page\n"
        "print(all(callable(getattr(enxuto, name)) for name in enxuto._HOMES))"
    )
    assert python(code) == "True"


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'squeeze'; its names are Change, Equalize, Error, .*save"):
        _ = enxuto.squeeze
    with pytest.raises(ImportError, match="squeeze"):
        exec("from enxuto import squeeze")


@pytest.mark.parametrize(
    "module", ["enxuto", "enxuto.errors", "enxuto.sizes", "enxuto.files", "enxuto.progress", "enxuto.coding"]
)
def test_importing_what_needs_no_torch_loads_none(module):
    heavy = ("torch", "onnx", "onnxruntime", "sklearn", "scipy", "lightning_fabric")
    assert python(f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])") == "[]"


def test_a_steps_import_does_not_load_the_trainer_or_a_runtime():
    code = "import sys, enxuto; enxuto.Quantize, enxuto.Recover, enxuto.load; print([n for n in {0!r} if n in sys.modules])"
    assert python(code.format(("onnxruntime", "lightning_fabric", "sklearn"))) == "[]"


def test_the_error_that_catches_all_is_public():
    with pytest.raises(enxuto.Error, match="bits=0"):
        enxuto.Quantize(bits=0)
