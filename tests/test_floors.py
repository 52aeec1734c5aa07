"""The house's own rules, read from its sources: imports go down, files and functions are short, nothing prints or swallows."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "enxuto"

# From the ground to the roof. A place may import what stands in a row above its own; inside a row nobody knows a neighbour,
# unless the row says that its places stand in the printed order. Renaming a place is one word here.
FLOORS: list[tuple[str, ...]] = [
    # ground floor
    ("errors",),
    ("extras",),
    ("checks",),
    ("sizes",),
    ("progress",),
    ("files",),
    ("records",),
    ("losses",),
    ("select",),
    ("batches",),
    ("copies",),
    ("world",),
    ("functional",),
    ("coding",),
    # first floor: modules
    ("layers",),
    ("outputs",),
    ("calls",),
    ("soundness",),
    ("task",),
    ("judging",),
    ("sites",),
    ("surgery",),
    ("reads",),
    ("cut",),
    ("macs",),
    ("calibrate",),
    ("evidence",),
    ("groups",),
    ("scoring",),
    ("refitting",),
    ("equalizing",),
    ("rounding",),
    ("forms",),
    ("ranks",),
    ("thin",),
    ("encode",),
    ("training",),
    ("memory",),
    # second floor: steps
    ("steps",),
    ("recipe",),
    ("changes",),
    ("lightning", "transformers"),
    # third floor: use
    ("artifact",),
    ("evaluation",),
    ("runtime",),
    ("exporters",),
    ("plan",),
    ("result",),
    ("measure",),
    ("allowance",),
    ("sensitivities",),
    ("allocation",),
    ("compression",),
    ("data",),
    ("zoo",),
    # roof
    ("reports",),
    ("verbs",),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, floor in enumerate(FLOORS) for name in floor}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Where any error of code that is not ours means the same, and the reason is written beside it.
CATCH_ALL = {
    "enxuto.artifact.digest.hexdigest": "an object of a user's may fail in any way when it is looked at; nothing is reused then",
    "enxuto.artifact.digest._samples": "an item of a data set that cannot be read is for the step that needs it to report",
    "enxuto.measure.measure": "why a file could not be exported is what the result says; the rest of the result stands",
    "enxuto.evaluation.compare._judge": "the artifact was judged by the same functions: what fails on an export is the export's",
    "enxuto.evaluation.fresh._sendable": "an error class of a user's may fail in any way while it is rebuilt",
    "enxuto.evaluation.fresh._main": "every error travels to the process that waits for it",
    "enxuto.groups.rehearse.__init__": "a model that does not run in double precision runs in its own",
    "enxuto.groups.rehearse.failure": "why a cut does not work is what it is asked for",
    "enxuto.calls._runs": "a network may fail in any way on a batch; whether it does is what is asked",
    "enxuto.memory.prediction.predict": "a model that cannot be followed without values is run with them, whatever the reason",
    "enxuto.memory.trials.measured_pace": "a precision that does not run here, whatever the reason, is no choice",
    "enxuto.training.lessons._only_differences_count": "a loss may refuse what no network gave in any way; that is no score",
    "enxuto.evidence.samples.small_batch": "a model that does not take fewer samples gets the whole batch",
    "enxuto.memory.footprint._foreseen": "why the memory of a network cannot be foreseen is what the report says",
}

FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def typing_only(module: ast.Module) -> set[ast.AST]:
    """Everything under `if TYPE_CHECKING:` and `if __name__ == "__main__":`, which an import does not run."""
    names = ("TYPE_CHECKING", "__name__")
    blocks = [n for n in ast.walk(module) if isinstance(n, ast.If) and any(name in ast.unparse(n.test) for name in names)]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        named = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in named]
    return []


@functools.cache
def imports(name: str, *, at_start: bool) -> tuple[str, ...]:
    """The modules that a module imports: all, or only those it imports when it is itself imported."""
    module = tree(name)
    skipped = typing_only(module)
    if at_start:
        functions = [n for n in ast.walk(module) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
        skipped |= {inner for function in functions for inner in ast.walk(function)}
    found = [target for node in ast.walk(module) if not (at_start and node in skipped) for target in targets(node)]
    return tuple(dict.fromkeys(found))


def place(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_place_has_a_floor_and_every_floor_a_place():
    assert {place(name) for name in MODULES} - {""} == set(RANK)


@pytest.mark.parametrize("name", [name for name in MODULES if place(name)])
def test_imports_only_go_down(name):
    for target in imports(name, at_start=False):
        if target.split(".")[0] == "enxuto" and place(target) not in ("", place(name)):
            assert RANK[place(target)] < RANK[place(name)], f"{name} imports {target}, which stands above it"


def test_nobody_imports_the_front_door():
    assert [
        name for name in MODULES for target in imports(name, at_start=False) if target == "enxuto" and place(name) != "cli"
    ] == []


def test_nobody_imports_the_command_line():
    found = [name for name in MODULES if place(name) != "cli" and any(place(t) == "cli" for t in imports(name, at_start=False))]
    assert found == ["enxuto.__main__"]


def test_steps_know_nothing_of_each_other():
    steps = [name for name in MODULES if name.startswith("enxuto.steps.") and name != "enxuto.steps.table"]
    assert len(steps) >= 7
    for name in steps:
        others = [target for target in imports(name, at_start=False) if place(target) == "steps" and target != name]
        assert others == [], f"{name} imports {others}"


def test_the_coding_room_imports_no_torch():
    for name in MODULES:
        if place(name) == "coding" or name in ("enxuto.artifact.container", "enxuto.errors", "enxuto.files", "enxuto.progress"):
            assert not [target for target in imports(name, at_start=False) if target.split(".")[0] == "torch"], name


def test_pure_functions_know_no_modules():
    allowed = ("functional", "errors")
    for name in MODULES:
        if place(name) == "functional":
            own = [target for target in imports(name, at_start=False) if target.startswith("enxuto")]
            assert all(place(target) in allowed for target in own), name
            assert not [t for t in imports(name, at_start=False) if t in ("torch.nn", "enxuto.layers")], name
            assert not [
                node
                for node in ast.walk(tree(name))
                if isinstance(node, ast.ImportFrom) and node.module == "torch" and any(alias.name == "nn" for alias in node.names)
            ], name


def test_no_module_imports_itself_in_a_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in MODULES:
            return
        for target in imports(name, at_start=True):
            visit(target, (*path, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{name} has {lines} lines"
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name}.{node.name} has {length} lines"


@pytest.mark.parametrize("name", [name for name in MODULES if place(name) != "cli"])
def test_the_library_does_not_print(name):
    for node in ast.walk(tree(name)):
        prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not prints, f"{name}, line {node.lineno}, prints"


def catching(name: str) -> set[str]:
    """The functions that catch every error and do not raise one in its place."""
    found = set()
    for function in ast.walk(tree(name)):
        for node in ast.walk(function) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) else ():
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = [] if node.type is None else [ast.unparse(kind) for kind in getattr(node.type, "elts", [node.type])]
            broad = node.type is None or {"Exception", "BaseException"} & set(kinds)
            raises = any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement))
            if broad and not raises:
                found.add(f"{name}.{function.name}")
    return found


def test_nothing_is_swallowed():
    assert set().union(*map(catching, MODULES)) == set(CATCH_ALL)


def test_no_test_has_a_limit_of_its_own():
    """One limit in pyproject.toml guards against hanging; any other is one more for a busy machine to break."""
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            limited = isinstance(node, ast.keyword) and node.arg == "timeout"
            marked = isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.timeout"
            if limited or marked:
                pytest.fail(f"{path.name}, line {node.lineno}, has a limit of its own")


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_called_utils_and_each_says_what_it_is(name):
    assert not {"utils", "helpers", "common", "misc"} & set(name.split("."))
    source = tree(name)
    assert not source.body or ast.get_docstring(source), f"{name} has no docstring"
    stars = [
        node for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


def test_what_scripts_import_from_the_package_is_there():
    """Benchmarks, tools and examples run seldom, and of tests rarely all: a name that moved away is found here."""
    missing = []
    scripts = [path for place in ("bench", "tools", "examples", "tests") for path in (ROOT.parents[1] / place).rglob("*.py")]
    for path in scripts:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "enxuto":
                continue
            module = importlib.import_module(str(node.module)) if node.module in MODULES else None
            gone = [a.name for a in node.names if f"{node.module}.{a.name}" not in MODULES and not hasattr(module, a.name)]
            missing += [f"{path.name}: {node.module}.{name}" for name in gone]
    assert len(scripts) > 20
    assert missing == []


def test_every_bench_is_run_by_the_one_that_runs_all():
    bench = ROOT.parents[1] / "bench"
    listed = (bench / "all.py").read_text(encoding="utf-8")
    scripts = [path.name for path in bench.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert len(scripts) > 30
    assert [name for name in scripts if name != "all.py" and f'"{name}"' not in listed] == []


def test_the_reader_of_imports_sees_what_it_must():
    """The test of the tests: a module that breaks every rule is caught."""
    code = "import torch.nn as nn\nfrom enxuto.steps import fold\ndef f():\n    from enxuto import cli\n"
    found = [target for node in ast.walk(ast.parse(code)) for target in targets(node)]
    assert found == ["torch.nn", "enxuto.steps.fold", "enxuto.cli"] or set(found) == {
        "torch.nn",
        "enxuto.steps.fold",
        "enxuto.cli",
    }
    assert "enxuto.copies" in imports("enxuto.surgery", at_start=True)
    assert "enxuto.functional.hot" in imports("enxuto.functional.table", at_start=False)
    assert "enxuto.functional.hot" not in imports("enxuto.functional.table", at_start=True)


def test_no_two_test_files_have_one_name():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set(), "pytest would import one in place of the other"
