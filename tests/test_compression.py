"""The one verb, end to end on a small network: files, numbers, proof, and what happens when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.branches import ends
from torch import Tensor, nn
from torch.nn import functional

import enxuto as ex
import enxuto.measure
from enxuto.errors import ExportError, TargetError, TaskError
from toys import Mlp

NAMES = ("file_bytes", "quality", "parameters", "macs", "latency_ms", "latency_samples_ms", "peak_memory_bytes")


def task(**more: object) -> ex.Task:
    x = torch.randn(300, 12)
    model = Mlp()
    y = model(x).argmax(1)
    parts = {"calibration": [x[:64]], "evaluate": Accuracy(x, y), "train": [(x, y)], "loss": functional.cross_entropy}
    return ex.Task(model, **(parts | more))


class Accuracy:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __call__(self, model: torch.nn.Module) -> torch.Tensor:
        return (model(self.x).argmax(1) == self.y).float()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ex.Result:
    torch.manual_seed(0)
    steps = [ex.Prune(sparsity=0.5), ex.Share(bits=4, biases=8), ex.Recover(epochs=2)]
    return ex.compress(task(), steps=steps, out=tmp_path_factory.mktemp("out"))


def test_the_folder_holds_the_files_that_were_measured(result: ex.Result) -> None:
    folder = result.artifact.parent
    assert {path.name for path in folder.iterdir()} == {
        "small.nxt",
        "small.onnx",
        "small.fp32.onnx",
        "small.int8.onnx",
        "original.onnx",
        "result.json",
    }
    assert result.evaluation.compressed.file_bytes == os.path.getsize(result.artifact)
    assert sum(entry.bytes for entry in result.ledger) == os.path.getsize(result.artifact)


def test_result_json_holds_what_scripts_rely_on(result: ex.Result) -> None:
    plain = json.loads((result.artifact.parent / "result.json").read_text())
    for which in ("original", "compressed"):
        assert all(plain[which][name] is not None for name in NAMES), which
    assert plain["compression"] == pytest.approx(plain["original"]["file_bytes"] / plain["compressed"]["file_bytes"])
    assert plain["quality_change"] == pytest.approx(plain["compressed"]["quality"] - plain["original"]["quality"])
    low, high = plain["quality_change_interval"]
    assert low <= plain["quality_change"] <= high
    assert plain["seed"] == 0
    assert plain["environment"]["torch"] == torch.__version__
    assert [item["step"] for item in plain["recipe"]] == ["Prune", "Share", "Recover"]
    assert [record["step"].split("(")[0] for record in plain["records"]] == ["Prune", "Share", "Recover"]


def test_the_file_gives_the_model_back_bit_for_bit(result: ex.Result) -> None:
    x = torch.randn(9, 12)
    assert torch.equal(ex.load(result.artifact, into=Mlp())(x), result.model(x))


def test_the_original_is_untouched(tmp_path: Path) -> None:
    brought = task()
    before = {name: tensor.clone() for name, tensor in brought.model.state_dict().items()}
    ex.compress(brought, steps=[ex.Quantize(bits=4)], out=tmp_path)
    after = brought.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert brought.model.training


def test_the_same_seed_gives_the_same_bytes(result: ex.Result, tmp_path: Path) -> None:
    torch.manual_seed(0)
    again = ex.compress(task(), steps=result.steps, out=tmp_path)
    assert again.artifact.read_bytes() == result.artifact.read_bytes()


def test_a_result_saves_exports_reports_and_evaluates(result: ex.Result, tmp_path: Path) -> None:
    ex.save(result, tmp_path / "again.nxt")
    assert (tmp_path / "again.nxt").read_bytes() == result.artifact.read_bytes()
    assert ex.export(result, tmp_path / "again.onnx").path.exists()
    ex.report(result, tmp_path / "one.html")
    ex.report(result.artifact.parent, tmp_path / "two.html")
    assert "smaller" in (tmp_path / "one.html").read_text()
    with pytest.raises(ex.Error, match=r"\.onnx"):
        ex.export(result, tmp_path / "model.tflite")
    evaluation = ex.evaluate(result.task, result.artifact)
    assert evaluation.compressed.quality == result.evaluation.compressed.quality


@pytest.mark.parametrize("error", [ValueError("operands"), MemoryError(), KeyError("weight")])
def test_whatever_ends_an_export_leaves_the_rest_of_the_result(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = enxuto.measure.export

    def breaks(model: torch.nn.Module, path: Path, **more: object) -> object:
        if more["precision"] == "int8":
            path.write_bytes(b"half a file")
            raise error
        return real(model, path, **more)

    monkeypatch.setattr(enxuto.measure, "export", breaks)
    found = ex.compress(task(), steps=[ex.Share(bits=4)], out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("small.nxt", "small.onnx", "small.fp32.onnx", "original.onnx", "result.json")
    }
    assert [item.precision for item in found.evaluation.exports] == ["fp32"]
    assert f"small.int8.onnx could not be exported: {type(error).__name__}" in found.evaluation.notes[0]


class Counting(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {"batches": 3}

    def get_extra_state(self) -> dict[str, int]:
        return self.seen

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state


def test_a_network_that_keeps_more_than_tensors_ends_in_its_files(tmp_path: Path) -> None:
    given = ex.Task(Counting(), calibration=[torch.randn(64, 12)])
    result = ex.compress(given, steps=[ex.Quantize(bits=8)], out=tmp_path)
    assert not [note for note in result.evaluation.notes if "could not be exported" in note]
    into = Counting()
    into.seen = {}
    assert ex.load(result.artifact, into=into).seen == {"batches": 3}
    assert (tmp_path / "small.onnx").is_file()


def test_without_labels_quality_is_agreement(tmp_path: Path) -> None:
    brought = ex.Task(Mlp(), calibration=[torch.randn(50, 12)])
    found = ex.compress(brought, steps=[ex.Quantize(bits=8)], out=tmp_path)
    assert found.evaluation.quality_name == "agreement"
    assert found.evaluation.original.quality == 1.0


def test_one_number_has_no_interval(tmp_path: Path) -> None:
    brought = task()
    judge = Accuracy(brought.evaluate.x, brought.evaluate.y)
    brought = ex.Task(brought.model, calibration=brought.calibration, evaluate=Mean(judge))
    found = ex.compress(brought, steps=[ex.Quantize(bits=8)], out=tmp_path)
    assert found.document()["quality_change_interval"] is None


class Mean:
    def __init__(self, judge: Accuracy) -> None:
        self.judge = judge

    def __call__(self, model: torch.nn.Module) -> float:
        return float(self.judge(model).mean())


def test_a_goal_is_met_from_a_target_alone(tmp_path: Path) -> None:
    found = ex.compress(task(), target=ex.Target(size="1.6 kB", max_drop=0.3), time="20s", out=tmp_path)
    assert found.met
    assert os.path.getsize(found.artifact) <= 1600
    assert found.history
    assert found.judged_quality == pytest.approx(float(found.task.evaluate(found.task.model).mean()))
    assert found.document()["judged_quality"] == found.judged_quality
    assert sum(trial.kept for trial in found.history) >= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "give either"),
        ({"steps": [ex.Fold()], "target": ex.Target(size=1000)}, "give either"),
        ({"target": ex.Target(size=50)}, "ask for more"),
        ({"target": ex.Target(compression=1e6)}, "ask for more"),
        ({"steps": [ex.Prune(0.5, layers="nothing*")]}, "matches nothing"),
        ({"target": ex.Target(size=1000), "time": "soon"}, "20 min"),
        ({"target": {"size": 1000}}, "target is dict, not a Target"),
        ({"steps": ex.Quantize()}, "steps is Quantize, not a list"),
        ({"steps": []}, "steps is empty"),
        ({"steps": [ex.Quantize()], "time": "20 min"}, r"time='20 min' bounds a search, and steps="),
    ],
)
def test_bad_goals_are_refused_before_anything_is_written(more: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ex.Error, match=message):
        ex.compress(task(), **more, out=tmp_path)
    assert not (tmp_path / "small.nxt").exists()


@pytest.mark.parametrize("what", [None, 3, [], {}])
def test_a_report_of_what_is_no_result_says_what_would_do(what: object, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="is no result and no path of one; give what compress returned, or the folder it wrote"):
        ex.report(what, tmp_path / "page.html")  # type: ignore[arg-type]
    assert not (tmp_path / "page.html").exists()


def test_a_model_alone_is_no_task(tmp_path: Path) -> None:
    for verb in (lambda: ex.compress(Mlp(), steps=[ex.Quantize()]), lambda: ex.evaluate(Mlp(), "small.nxt")):
        with pytest.raises(ex.Error, match=r"task is Mlp, not a Task; write Task\(model"):
            verb()
    with pytest.raises(ex.Error, match=r"task is Mlp, not a Task"):
        ex.prepare(Mlp(), [ex.Quantize()])
    brought = task()
    for verb in (lambda: ex.save(brought, tmp_path / "a.nxt"), lambda: ex.export(brought, tmp_path / "a.onnx", calibration=[])):
        with pytest.raises(ex.Error, match="Task is neither a result nor a model"):
            verb()
    with pytest.raises(ex.Error, match="Mlp is a model, and a report is of a result"):
        ex.report(Mlp(), tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_a_precision_nobody_knows_is_not_taken_for_another(tmp_path: Path) -> None:
    with pytest.raises(ex.Error, match="precision='int3' is not known"):
        ex.export(Mlp(), tmp_path / "a.onnx", calibration=[torch.randn(2, 12)], precision="int3")
    with pytest.raises(ex.Error, match=r"is Tensor, not a list of batches; write calibration=\[batch\]"):
        ex.export(Mlp(), tmp_path / "a.onnx", calibration=torch.randn(2, 12))
    assert not list(tmp_path.iterdir())


def test_an_evaluate_that_fails_is_found_before_the_first_step(tmp_path: Path) -> None:
    def never(model: torch.nn.Module) -> float:
        raise ZeroDivisionError("no samples")

    with pytest.raises(ex.Error, match=r"evaluate failed on Mlp \(ZeroDivisionError: no samples"):
        ex.compress(task(evaluate=never), steps=[ex.Recover(epochs=1e6)], out=tmp_path)


def test_what_ctrl_c_must_not_break_is_loaded_before_the_search(tmp_path: Path) -> None:
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_compression import task
import enxuto as ex
from enxuto.plan.search import Search
def stop(search):
    print("torch._dynamo" in sys.modules)
    raise KeyboardInterrupt
Search.run = stop
ex.compress(task(), target=ex.Target(size="1.6 kB"), out={str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n"
    assert "KeyboardInterrupt" in done.stderr


def test_an_output_folder_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ex.Error, match="cannot be written"):
        ex.compress(task(), steps=[ex.Quantize()], out=tmp_path / "file")


KILLED = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_compression import task
import enxuto as ex
from enxuto.artifact.checkpoints import FolderCheckpoints

class Killed(FolderCheckpoints):
    def keep(self, *given):
        super().keep(*given)
        if len(list(self.folder.glob("*.json"))) == {kept}:
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
out = Path({out!r})
steps = [ex.Prune(0.3), ex.Recover(epochs=20), ex.Prune(0.6), ex.Recover(epochs=20), ex.Share(bits=4), ex.Recover(epochs=5)]
brought = task()
model, _ = ex.run(brought, steps, checkpoints=Killed(out))
ex.save(model, out / "small.nxt", original=brought.model)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def ended(out: Path, kept: int) -> int:
        out.mkdir(exist_ok=True)
        return ends(KILLED.format(tests=str(Path(__file__).parent), out=str(out), kept=kept))

    assert ended(tmp_path / "killed", 3) == -signal.SIGKILL
    assert len(list((tmp_path / "killed").glob("*.json"))) == 3
    assert ended(tmp_path / "killed", 99) == 0
    assert ended(tmp_path / "whole", 99) == 0
    assert (tmp_path / "killed/small.nxt").read_bytes() == (tmp_path / "whole/small.nxt").read_bytes()


SEARCHED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_compression import task
import enxuto as ex
from enxuto.plan.history import History
keep = History.keep

def kept(self):
    keep(self)
    if len(self.known) >= {trials}:
        os.kill(os.getpid(), {signal})

History.keep = kept
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
torch.manual_seed(0)
ex.compress(task(), target=ex.Target(max_drop=0.2), time=300, out={out!r})
"""


def test_a_killed_search_goes_on_and_ctrl_c_ends_it_with_its_files(tmp_path: Path) -> None:
    def ended(trials: int, how: signal.Signals) -> int:
        return ends(SEARCHED.format(tests=str(Path(__file__).parent), out=str(tmp_path), trials=trials, signal=int(how)))

    assert ended(3, signal.SIGKILL) == -signal.SIGKILL
    before = [trial["recipe"] for trial in json.loads((tmp_path / ".work/search.json").read_bytes())["trials"]]
    assert len(before) == 3
    assert ended(5, signal.SIGINT) == 0
    history = json.loads((tmp_path / "result.json").read_bytes())["history"]
    assert [trial["recipe"] for trial in history][:3] == before
    assert len(history) == 4
    assert (tmp_path / "small.nxt").stat().st_size in [trial["file_bytes"] for trial in history]


class Bare(nn.Module):
    """Most of its weights are parameters of its own, as GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing, self.head = nn.Parameter(torch.randn(64, 64)), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.mixing))


def test_a_size_below_what_stays_in_float_is_refused_with_its_name(tmp_path: Path) -> None:
    brought = ex.Task(Bare().eval(), calibration=[torch.randn(8, 64)])
    with pytest.raises(TargetError, match=r"stays in float: 'mixing'; ask for more"):
        ex.compress(brought, target=ex.Target(size="4 kB"), out=tmp_path)


def test_a_result_without_an_export_leaves_no_file_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.onnx").write_bytes(b"of another network")

    def refused(*_: object, **__: object) -> None:
        raise ExportError("torch cannot export it; write it otherwise.")

    monkeypatch.setattr(enxuto.measure, "export", refused)
    result = ex.compress(task(), steps=[ex.Quantize(bits=8)], out=tmp_path)
    assert not (tmp_path / "small.onnx").exists()
    assert result.document()["met"] is None  # no goal, none met


def test_a_recipe_that_ruins_the_network_is_not_met(tmp_path: Path) -> None:
    result = ex.compress(task(), steps=[ex.Prune(0.99, scores="magnitude")], out=tmp_path)
    assert result.evaluation.ruined
    assert not result.met
    assert result.verdict == (f"{result.evaluation.ruin}: missed",)
    written = json.loads((tmp_path / "result.json").read_text())
    assert (written["met"], written["verdict"]) == (False, list(result.verdict))


def test_without_out_the_files_are_there_and_a_run_that_fails_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(TargetError):
        ex.compress(task(), target=ex.Target(size=1))
    assert list(tmp_path.iterdir()) == []
    result = ex.compress(task(), steps=[ex.Quantize(bits=8)])
    assert [result.artifact.parent] == list(tmp_path.glob("enxuto-*"))
    assert all(path.is_file() for path in (result.artifact, *result.exports.values()))
