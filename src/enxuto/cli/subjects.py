"""Networks beside each other, each measured on its file: quality in a fresh process, latency in one interleaved run."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn

from enxuto.artifact.save import ledger, load
from enxuto.batches import Batch, rows
from enxuto.errors import ArtifactError, ExportError
from enxuto.evaluation.compare import count_parameters
from enxuto.evaluation.fresh import UnpicklableError, in_fresh_process
from enxuto.evaluation.latency import latencies
from enxuto.evaluation.measurement import Interval
from enxuto.evaluation.memory import peak_memory
from enxuto.evaluation.onnxmodel import OnnxModel
from enxuto.evaluation.quality import agreement, paired_change
from enxuto.exporters import export
from enxuto.judging import quality
from enxuto.macs import count_macs
from enxuto.measure import ORIGINAL, save_original
from enxuto.progress import say
from enxuto.reports import Document
from enxuto.reports.document import Measured
from enxuto.sizes import file_bytes
from enxuto.surgery import to_float
from enxuto.task import Evaluate, Task


@dataclass(frozen=True)
class Subject:
    """What is measured: the task's own network (`file` is None), a .nxt or .onnx file. `onnx` is what is timed, the file
    itself; where it is None, the very network in the file is exported in float32.
    """

    name: str
    file: Path | None = None
    onnx: Path | None = None

    def bytes(self, model: nn.Module, folder: Path) -> int:
        """The size of the file; for the task's own network, that of a plain safetensors file, written to `folder`."""
        if self.file is not None:
            return file_bytes(self.file)
        save_original(model, folder / ORIGINAL)
        return file_bytes(folder / ORIGINAL)

    @property
    def is_onnx(self) -> bool:
        """True when the file itself is what the runtime opens; its parameters and MACs are not counted."""
        return self.file is not None and self.file.suffix == ".onnx"


@dataclass(frozen=True)
class Measures:
    """One measurement for each subject, and the paired change of quality from the first to the last."""

    networks: tuple[Measured, ...]
    quality_name: str
    quality_change: float
    quality_change_interval: Interval
    samples: int
    notes: tuple[str, ...]

    def document(self) -> Document:
        """The first network as the original and the last as the compressed one, for tables."""
        return Document(
            original=self.networks[0],
            compressed=self.networks[-1],
            quality_name=self.quality_name,
            quality_change=self.quality_change,
            quality_change_interval=self.quality_change_interval,
            samples=self.samples,
            notes=self.notes,
        )

    def data(self, *names: str) -> dict[str, Any]:
        """The same as plain data, each network under its name."""
        data: dict[str, Any] = {name: asdict(network) for name, network in zip(names, self.networks, strict=True)}
        if len(names) > 1:
            data |= {
                "quality_change": self.quality_change,
                "quality_change_interval": self.quality_change_interval,
                "compression": self.networks[0].file_bytes / self.networks[-1].file_bytes,
            }
        return data | {"quality_name": self.quality_name, "samples": self.samples, "notes": self.notes}


def subject(path: Path) -> Subject:
    """The subject that a path means: a .nxt or .onnx file; of the folder of a result, its small.nxt.

    Raises: ArtifactError when it is none of these, does not exist or is damaged.
    """
    if path.is_dir():
        nxt = path / "small.nxt"
        if not (path / "result.json").is_file() or not nxt.is_file():
            raise ArtifactError(f"folder '{path}' holds no result.json with a small.nxt; name one that `enxuto compress` wrote.")
        ledger(nxt)
        return Subject(str(nxt), nxt)
    if path.suffix not in (".nxt", ".onnx"):
        raise ArtifactError(f"'{path}' is no result by its name; give a .nxt file, an .onnx file or a folder with result.json.")
    if not path.is_file():
        raise ArtifactError(f"'{path}' does not exist; name a file or folder that `enxuto compress` wrote.")
    if path.suffix == ".nxt":
        ledger(path)  # a damaged file is found before a task file trains anything
    return Subject(str(path), path, path if path.suffix == ".onnx" else None)


def measure(task: Task, subjects: Sequence[Subject]) -> Measures:
    """Measures all subjects with the task's functions: `test` if there is one, else `evaluate`, else agreement.

    Raises: ArtifactError or ExportError when a file cannot be opened; TaskError when the task's functions fail.
    """
    name = "test" if task.test else "evaluate" if task.evaluate else "agreement"
    judge = task.test or task.evaluate or agreement(task.model, task.calibration, outputs=task.outputs)
    sample: Batch = rows(task.sample, 0, 1)
    notes: list[str] = []
    found = []
    for number, one in enumerate(subjects):
        say("evaluating", number, len(subjects))
        found.append(_judged(task, one, judge, sample, notes))
    say("evaluating", len(subjects), len(subjects))
    say("timing")
    with tempfile.TemporaryDirectory() as folder:
        files = [_runnable(task, one, Path(folder) / f"{number}.onnx", notes) for number, one in enumerate(subjects)]
        timed = {str(number): file for number, file in enumerate(files) if file is not None}
        clocks = latencies(timed, sample) if timed else {}
        peaks = {number: peak_memory(file, sample) for number, file in timed.items()}
        sizes = [one.bytes(task.model, Path(folder)) for one in subjects]
    networks = tuple(
        Measured(
            file_bytes=sizes[number],
            quality=float(judged.values.mean()),
            parameters=judged.parameters,
            macs=judged.macs,
            latency_ms=median(clocks[str(number)]) if str(number) in clocks else None,
            latency_samples_ms=tuple(clocks.get(str(number), ())),
            peak_memory_bytes=peaks.get(str(number)),
            precision="" if subjects[number].is_onnx else "run as fp32",
        )
        for number, judged in enumerate(found)
    )
    return Measures(networks, name, *paired_change(found[0].values, found[-1].values), tuple(notes))


@dataclass(frozen=True)
class _Judged:
    values: Tensor
    parameters: int | None
    macs: int | None


def _judged(task: Task, one: Subject, judge: Evaluate, sample: Batch, notes: list[str]) -> _Judged:
    """Quality, parameters and MACs of a file opened in a fresh process; of the task's own network here."""
    if one.file is None:
        return _judge(lambda: task.model, judge, sample)
    file = one.file.resolve()
    opened = functools.partial(OnnxModel, file) if one.is_onnx else functools.partial(load, file, into=task.model)
    try:
        return in_fresh_process(_judge, opened, judge, sample)
    except UnpicklableError as error:
        notes.append(f"'{one.name}' was opened and evaluated in this process, not in a fresh one: {error}")
        return _judge(opened, judge, sample)


def _judge(opened: Callable[[], nn.Module], judge: Evaluate, sample: Batch) -> _Judged:
    model = opened()
    values = quality(judge, model)
    if isinstance(model, OnnxModel):
        return _Judged(values, None, None)  # its graph is not counted layer by layer
    plain = to_float(model)
    return _Judged(values, count_parameters(plain), sum(count_macs(plain, sample).values()))


def _runnable(task: Task, one: Subject, path: Path, notes: list[str]) -> Path | None:
    """The file that the runtime opens, exported in float32 where there is none; None, with a note, if that fails."""
    if one.onnx is not None:
        return one.onnx
    try:
        model = task.model if one.file is None else load(one.file, into=task.model)
        notes += [f"'{one.name}': {note}" for note in export(model, path, calibration=task.calibration).notes]
    except ExportError as error:
        notes.append(f"'{one.name}' could not be exported, so it was not timed: {error}")
        return None
    return path
