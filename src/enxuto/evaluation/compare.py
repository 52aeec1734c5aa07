"""The original beside the compressed network, each number taken from the file that ships.

The artifact is loaded and evaluated in a fresh process, every exported file is run there too, and all files are timed
in one interleaved run. What should be said aloud (not faster, quality lost, not smaller) becomes a note.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from torch import Tensor, nn

from enxuto.batches import Batch, rows
from enxuto.errors import Error
from enxuto.evaluation.doubts import blank_quality, seen_before
from enxuto.evaluation.environment import environment
from enxuto.evaluation.fresh import FreshProcessError, UnpicklableError, in_fresh_process
from enxuto.evaluation.latency import latencies
from enxuto.evaluation.measurement import Evaluation, Exported, Measurement
from enxuto.evaluation.memory import peak_memory
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.operators import integer_operators
from enxuto.evaluation.points import is_fraction, points, said
from enxuto.evaluation.quality import agreement, paired_change
from enxuto.judging import quality
from enxuto.macs import count_macs
from enxuto.sizes import file_bytes
from enxuto.surgery import to_float
from enxuto.task import Evaluate, Task

logger = logging.getLogger(__name__)
_ORIGINAL = "original"  # key of the original's own .onnx among the timed files
_ARTIFACT = "artifact"  # key of the .nxt file among the judged files
TOLERANCE = 0.01  # of the artifact's quality; an export that loses more is worse than the artifact


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is measured: sizes of both files on disk, the original as .onnx, the compressed network by precision.

    `original_onnx` is None when the original could not be exported: then there is no clock and no peak memory.
    """

    original_bytes: int
    compressed_bytes: int
    original_onnx: Path | None
    exports: Mapping[str, Path] = field(default_factory=dict)  # "fp32", "int8"


@dataclass(frozen=True)
class _Found:
    """What the fresh process found."""

    parameters: int
    macs: int
    values: dict[str, Tensor]  # per artifact ("artifact") and export ("fp32", "int8"): quality for the report
    choice: dict[str, Tensor]  # the same on the data that the choice between exports is made on
    failed: dict[str, str]  # exports that could not be judged, and why


def evaluate_pair(
    task: Task,
    files: Files,
    load: Callable[[], nn.Module],
    *,
    max_drop: float = math.inf,
    rounds: int = 30,
    threads: int = 1,
) -> Evaluation:
    """Everything that is said of a result: quality with its paired interval, sizes, MACs, latency and peak memory.

    `load` builds the artifact anew; it runs in a fresh process with the task's functions, or here, with a note, when
    they cannot be sent there. Quality is `task.test`, else `task.evaluate`, else agreement with the original on the
    calibration batches. The compressed network's latency is that of its fastest export that loses at most `max_drop`, or,
    without one, is no worse than the artifact, as judged by `task.evaluate` where there is one, so that the test has no
    say in the choice. An export that fails is left out, with a note.
    Raises: TaskError when the task's functions fail on the artifact.
    """
    name = "test" if task.test else "evaluate" if task.evaluate else "agreement"
    judge = task.test or task.evaluate or agreement(task.model, task.calibration, outputs=task.outputs)
    chooser = task.evaluate if task.test and task.evaluate and len(files.exports) > 1 else None
    sample = _one(task)
    notes: list[str] = []
    paths = {kind: os.fspath(path) for kind, path in files.exports.items()}
    try:
        found = in_fresh_process(_judge, load, paths, judge, chooser, sample)
    except UnpicklableError as error:
        notes.append(f"the artifact was reloaded and evaluated in this process, not in a fresh one: {error}")
        found = _judge(load, paths, judge, chooser, sample)
    except FreshProcessError as error:  # an export may end a process: the artifact is judged without it
        found = in_fresh_process(_judge, load, {}, judge, chooser, sample)
        found = replace(found, failed=dict.fromkeys(paths, str(error)))
    notes += [f"small.{kind}.onnx was left out, because it could not be judged: {why}" for kind, why in found.failed.items()]
    files = replace(files, exports={kind: path for kind, path in files.exports.items() if kind not in found.failed})
    before = quality(judge, task.model)
    validation = quality(task.evaluate, task.model) if task.test and task.evaluate else before
    notes += seen_before(validation, before)
    before_choice = validation if chooser else before
    change, interval, samples = paired_change(before, found.values[_ARTIFACT])

    clocks, peaks, stopped = _run(files, sample, rounds, threads)
    notes += stopped
    exports = tuple(_exported(kind, path, before, found, clocks, peaks) for kind, path in files.exports.items())
    chosen, remarks = _choose(exports, _losses(before_choice, found), max_drop, float(found.choice[_ARTIFACT].mean()))
    original, compressed = _measurements(task, files, before, found, chosen, clocks, peaks)
    return _with_ruin(
        Evaluation(
            original=original,
            compressed=compressed,
            quality_name=name,
            quality_change=change,
            quality_change_interval=interval,
            samples=samples,
            blank_quality=blank_quality(judge, task.model),
            exports=exports,
            notes=(*notes, *remarks, *_findings(original, compressed)),
            environment=environment() | {"runtime_threads": str(threads)},
        )
    )


def _with_ruin(evaluation: Evaluation) -> Evaluation:
    """The same with a last note where the network is no longer the same."""
    return replace(evaluation, notes=(*evaluation.notes, f"{evaluation.ruin}.")) if evaluation.ruin else evaluation


def _measurements(
    task: Task,
    files: Files,
    before: Tensor,
    found: _Found,
    chosen: Exported | None,
    clocks: dict[str, list[float]],
    peaks: dict[str, int],
) -> tuple[Measurement, Measurement]:
    """The original and the compressed network in numbers."""
    plain = to_float(task.model)
    original = Measurement(
        file_bytes=files.original_bytes,
        quality=float(before.mean()),
        parameters=count_parameters(plain),
        macs=sum(count_macs(plain, _one(task)).values()),
        latency_ms=median(clocks[_ORIGINAL]) if clocks else None,
        latency_samples_ms=tuple(clocks.get(_ORIGINAL, ())),
        peak_memory_bytes=peaks.get(_ORIGINAL),
        precision="fp32" if clocks else "none",
    )
    compressed = Measurement(
        file_bytes=files.compressed_bytes,
        quality=float(found.values[_ARTIFACT].mean()),
        parameters=found.parameters,
        macs=found.macs,
        latency_ms=chosen.latency_ms if chosen else None,
        latency_samples_ms=chosen.latency_samples_ms if chosen else (),
        peak_memory_bytes=chosen.peak_memory_bytes if chosen else None,
        precision=chosen.precision if chosen else "none",
    )
    return original, compressed


def _one(task: Task) -> Batch:
    """One row of the sample inputs."""
    row: Batch = rows(task.sample, 0, 1)
    return row


def count_parameters(model: nn.Module) -> int:
    """Weights, biases and norms of a plain model; one shared by two layers counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _judge(
    load: Callable[[], nn.Module], paths: dict[str, str], judge: Evaluate, chooser: Evaluate | None, sample: Batch
) -> _Found:
    """Quality of the artifact and of every export; runs in the fresh process."""
    model = load()
    plain = to_float(model)
    values = {_ARTIFACT: quality(judge, model)}
    choice = {_ARTIFACT: quality(chooser, model) if chooser else values[_ARTIFACT]}
    failed: dict[str, str] = {}
    for kind, path in paths.items():
        try:
            exported = OnnxModel(path)
            judged = quality(judge, exported)
            choice[kind] = quality(chooser, exported) if chooser else judged
            paired_change(values[_ARTIFACT], judged)  # as many values, in the same order
            values[kind] = judged
        except Exception as error:  # the artifact was judged by the same functions: what fails here is the export's
            failed[kind] = f"{type(error).__name__}: {error}"
    return _Found(count_parameters(plain), sum(count_macs(plain, sample).values()), values, choice, failed)


def _run(
    files: Files, sample: Batch, rounds: int, threads: int
) -> tuple[dict[str, list[float]], dict[str, int], tuple[str, ...]]:
    """Latency samples and peak memory of the original and every export; empty, with a note, when one does not run."""
    if files.original_onnx is None or not files.exports:
        return {}, {}, ()
    paths = {_ORIGINAL: files.original_onnx, **files.exports}
    try:
        clocks = latencies(paths, sample, rounds=rounds, threads=threads)
        return clocks, {kind: peak_memory(path, sample) for kind, path in paths.items()}, ()
    except Error as error:
        logger.warning("latency and memory were not measured: %s", error)
        return {}, {}, (f"latency and memory could not be measured: {error}",)


def _losses(before: Tensor, found: _Found) -> dict[str, float]:
    """The change of quality against the original, of the artifact and of every export, on the data of the choice."""
    return {kind: paired_change(before, values)[0] for kind, values in found.choice.items() if kind not in found.failed}


def _exported(
    kind: str, path: Path, before: Tensor, found: _Found, clocks: dict[str, list[float]], peaks: dict[str, int]
) -> Exported:
    change, interval, _ = paired_change(before, found.values[kind])
    operators = integer_operators(path)
    return Exported(
        runtime="onnxruntime",
        precision=kind,
        file_bytes=file_bytes(path),
        quality=float(found.values[kind].mean()),
        quality_change=change,
        quality_change_interval=interval,
        latency_ms=median(clocks[kind]) if clocks else None,
        latency_samples_ms=tuple(clocks.get(kind, ())),
        peak_memory_bytes=peaks.get(kind),
        integer_operators=operators.integer.total(),
        float_operators=operators.floating.total(),
    )


def _choose(
    exports: tuple[Exported, ...], changes: dict[str, float], max_drop: float, quality: float
) -> tuple[Exported | None, list[str]]:
    """The fastest export that is good enough, else the float32 one, and what must be said.

    Good enough: it loses at most `max_drop` against the original; where none was given, or even the artifact loses more,
    it loses no more than TOLERANCE of the artifact's `quality` against the artifact. `changes`: by precision and of the
    artifact, against the original.
    """
    if not exports:
        return None, ["the network was not exported to a runtime, so there is no latency and no peak memory."]
    fraction = is_fraction(quality, quality - changes[_ARTIFACT])
    limit, rule = -max_drop, f"beyond the {points(max_drop, fraction)} of max_drop"
    if math.isinf(max_drop) or changes[_ARTIFACT] < -max_drop:
        limit = changes[_ARTIFACT] - TOLERANCE * abs(quality)
        rule = f"and the compressed network itself {said(changes[_ARTIFACT], fraction)}"
    good = [export for export in exports if changes[export.precision] >= limit]
    notes = [
        f"the {export.precision} export {said(changes[export.precision], fraction)}, {rule}; it was not chosen."
        for export in exports
        if export not in good
    ]
    clock = {export.precision: export.latency_ms or math.inf for export in exports}
    if all(export.latency_ms is None for export in exports):
        notes.append("no export could be timed beside the original, so there is no latency; float32 is taken where it is good.")
    if clock.get("int8", 0.0) > clock.get("fp32", math.inf):
        notes.append(f"int8 is slower than fp32 on this machine ({clock['int8']:.3g} ms against {clock['fp32']:.3g} ms).")
    if not good:
        words = f"no export keeps quality ({rule}); latency and memory are of the float32 one, which changes nothing by itself."
        return next((export for export in exports if export.precision == "fp32"), None), [words, *notes]
    return min(good, key=lambda export: clock[export.precision]), notes


def _findings(original: Measurement, compressed: Measurement) -> list[str]:
    """What a person must not overlook in the numbers of both."""
    notes = []
    if compressed.file_bytes >= original.file_bytes:
        notes.append(f"the file did not get smaller: {compressed.file_bytes} bytes against {original.file_bytes}.")
    if compressed.latency_ms and original.latency_ms and compressed.latency_ms >= original.latency_ms:
        notes.append(f"the network did not get faster: {compressed.latency_ms:.3g} ms against {original.latency_ms:.3g} ms.")
    return notes
