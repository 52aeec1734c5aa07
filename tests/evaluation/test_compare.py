"""Latency, memory and the whole comparison, on small real files in fresh processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from enxuto.errors import ExportError, RangeError, TaskError
from enxuto.evaluation.compare import Files, _choose, evaluate_pair
from enxuto.evaluation.environment import environment
from enxuto.evaluation.latency import _clock, latencies
from enxuto.evaluation.measurement import Exported
from enxuto.evaluation.memory import peak_memory
from enxuto.exporters import export
from enxuto.task import Task


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A wide network, a narrow one, and the narrow one in int8."""
    folder = tmp_path_factory.mktemp("files")
    batches = [torch.randn(32, 64)]
    export(network(16384), folder / "wide.onnx", calibration=batches)
    export(network(64), folder / "narrow.onnx", calibration=batches)
    export(network(64), folder / "int8.onnx", calibration=batches, precision="int8")
    return {path.stem: path for path in folder.iterdir()}


def test_a_wider_network_takes_longer_and_more_memory(files):
    sample = torch.randn(5, 64)
    times = latencies({"wide": files["wide"], "narrow": files["narrow"]}, sample, rounds=5)
    assert {name: len(values) for name, values in times.items()} == {"wide": 5, "narrow": 5}
    assert min(times["wide"]) > 2 * min(times["narrow"]) > 0
    weights_bytes = 16384 * 74 * 4  # 4.8 MB
    assert 0.9 * weights_bytes < peak_memory(files["wide"], sample) < 6 * weights_bytes
    assert peak_memory(files["narrow"], sample) < 0.5 * weights_bytes


def test_a_single_thread_is_timed_by_its_own_clock_which_other_programs_do_not_move():
    assert _clock(threads=1) is time.thread_time
    assert _clock(threads=2) is time.perf_counter


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"threads": 0}])
def test_no_rounds_or_threads_are_refused(bad, files):
    with pytest.raises(RangeError, match="at least 1"):
        latencies({"wide": files["wide"]}, torch.randn(1, 64), **bad)


def test_a_missing_file_is_an_export_error_also_from_the_fresh_process(tmp_path):
    with pytest.raises(ExportError, match=r"gone\.onnx"):
        peak_memory(tmp_path / "gone.onnx", torch.randn(1, 64))


def test_the_environment_names_versions_and_no_paths_or_hosts():
    import socket

    found = environment()
    assert found["torch"] == torch.__version__
    text = json.dumps(found)
    assert "/" not in text.replace("CPU", "")
    assert socket.gethostname() not in text


def halves(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 64, generator=generator)
    return (model(x).argmax(1) == network(16384)(x).argmax(1)).double()


def test_everything_is_measured_on_files_and_stays_valid_json(files):
    torch.manual_seed(1)
    task = Task(network(16384), calibration=[torch.randn(16, 64)], evaluate=halves)
    given = Files(
        original_bytes=files["wide"].stat().st_size,
        compressed_bytes=1000,
        original_onnx=files["wide"],
        exports={"fp32": files["narrow"], "int8": files["int8"]},
    )
    found = evaluate_pair(task, given, lambda: network(64), rounds=4)
    assert found.quality_name == "evaluate"
    assert found.samples == 40
    assert found.original.quality == 1
    assert found.quality_change == pytest.approx(found.compressed.quality - 1)
    low, high = found.quality_change_interval
    assert low < found.quality_change < high
    assert found.original.macs == 16384 * 74
    assert found.compressed.macs == 64 * 74
    assert found.compressed.parameters == 64 * 74 + 74
    assert found.compressed.file_bytes == 1000
    assert {item.precision: item.float_operators for item in found.exports} == {"fp32": 2, "int8": 0}
    artifact, worst = found.compressed.quality, 0.01 * found.compressed.quality
    fastest = min((e for e in found.exports if e.quality >= artifact - worst), key=lambda item: item.latency_ms)
    assert found.compressed.latency_ms == fastest.latency_ms == median(fastest.latency_samples_ms)
    assert found.compressed.precision == fastest.precision
    assert found.speedup > 1
    assert found.notes[-1] == f"{found.ruin}."  # another network, which knows nothing of what the original does
    assert all("int8 is slower" in note or "it was not chosen" in note for note in found.notes[:-1])
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_without_labels_quality_is_agreement_and_what_cannot_travel_is_judged_here(files):
    task = Task(network(64), calibration=[torch.randn(16, 64)])
    unsendable = (x for x in [1])
    given = Files(original_bytes=5, compressed_bytes=9, original_onnx=None)
    found = evaluate_pair(task, given, lambda: (unsendable, network(64))[1])
    assert (found.quality_name, found.quality_change, found.samples) == ("agreement", 0.0, 16)
    assert (found.compressed.latency_ms, found.compressed.precision, found.speedup) == (None, "none", None)
    assert "in this process" in found.notes[0]
    assert "not exported" in found.notes[1]
    assert "did not get smaller" in found.notes[2]
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_an_evaluate_that_fails_on_the_artifact_is_a_task_error_from_the_fresh_process_too(files):
    def evaluate(model: nn.Module) -> float:
        return float(model[0].weight[1000].mean())  # the original has such a row

    task = Task(network(16384), calibration=[torch.randn(4, 64)], evaluate=evaluate)
    with pytest.raises(TaskError, match="Sequential"):
        evaluate_pair(task, Files(original_bytes=5, compressed_bytes=4, original_onnx=None), lambda: network(64))


@pytest.mark.parametrize("kill", [False, True])
def test_an_export_that_cannot_be_judged_leaves_the_rest_of_the_result(kill, files):
    def evaluate(model: nn.Module) -> float:
        if kill and not isinstance(model, nn.Sequential):
            os._exit(9)  # as a fault inside a runtime ends the process
        return float(model[0].weight.mean())  # an exported file has no layers

    given = Files(original_bytes=5, compressed_bytes=4, original_onnx=files["wide"], exports={"fp32": files["narrow"]})
    task = Task(network(64), calibration=[torch.randn(4, 64)], evaluate=evaluate)
    found = evaluate_pair(task, given, lambda: network(64))
    assert (found.quality_change, found.exports, found.compressed.precision) == (0.0, (), "none")
    assert "small.fp32.onnx was left out" in found.notes[0]
    assert ("code 9" if kill else "OnnxModel") in found.notes[0]


def exported(precision: str, milliseconds: float | None) -> Exported:
    return Exported(
        runtime="onnxruntime",
        precision=precision,
        file_bytes=1,
        quality=1.0,
        quality_change=0.0,
        quality_change_interval=None,
        latency_ms=milliseconds,
        latency_samples_ms=(),
        peak_memory_bytes=1,
    )


@pytest.mark.parametrize(
    ("clock", "changes", "max_drop", "chosen", "words"),
    [
        ((2.0, 1.0), (0.0, 0.0, -0.001), 0.005, "int8", None),
        ((2.0, 1.0), (0.0, 0.0, -0.1), 0.005, "fp32", "int8 export lost 10 points, beyond the 0.5 points of max_drop"),
        ((1.0, 2.0), (0.0, 0.0, 0.0), 0.005, "fp32", "int8 is slower than fp32"),
        ((2.0, 1.0), (-0.2, -0.2, -0.3), 0.005, "fp32", "int8 export lost 30 points, and the compressed network itself lost 20"),
        ((2.0, 1.0), (-0.2, -0.2, -0.2), 0.005, "int8", None),
        (
            (2.0, 1.0),
            (0.0, 0.0, -0.94),
            math.inf,
            "fp32",
            "int8 export lost 94 points, and the compressed network itself lost nothing",
        ),
        ((2.0, 1.0), (-0.3, -0.3, -0.302), math.inf, "int8", None),
        ((2.0, 1.0), (0.0, -0.5, -0.5), math.inf, "fp32", "no export keeps quality"),
        ((None, None), (0.0, 0.0, 0.0), 0.005, "fp32", "no export could be timed"),
        ((None, None), (0.0, -0.5, 0.0), 0.005, "int8", "fp32 export lost 50 points"),
    ],
)
def test_the_fastest_export_that_keeps_quality_is_chosen(clock, changes, max_drop, chosen, words):
    pair = (exported("fp32", clock[0]), exported("int8", clock[1]))
    found, notes = _choose(pair, dict(zip(("artifact", "fp32", "int8"), changes, strict=True)), max_drop, 0.7)
    assert found.precision == chosen
    assert notes == [] if words is None else words in notes[0]
