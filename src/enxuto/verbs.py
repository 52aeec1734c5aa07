"""What a person does with a result, a model or a file: save, export, evaluate, report; each a thin door to its room."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from enxuto import world
from enxuto.artifact.save import Entry, load
from enxuto.artifact.save import save as save_model
from enxuto.batches import Batch
from enxuto.checks import named
from enxuto.errors import ExportError, OutputError, TaskError
from enxuto.evaluation.compare import TOLERANCE
from enxuto.evaluation.measurement import Evaluation
from enxuto.evaluation.points import is_fraction, shown
from enxuto.exporters import LARGE_ERROR, OnnxFile
from enxuto.exporters import export as export_model
from enxuto.files import as_path, writable_folder
from enxuto.losses import Sensitivity, newest_sensitivity
from enxuto.measure import ORIGINAL, measure, save_original
from enxuto.reports import Document, read_document, write_html
from enxuto.result import Result
from enxuto.task import Task

PathLike = str | os.PathLike[str]


def save(
    what: Result | nn.Module,
    path: PathLike,
    *,
    original: nn.Module | None = None,
    graph: Iterable[Batch] | bool = False,
    device: bool = False,
    about: Mapping[str, str] | None = None,
) -> list[Entry]:
    """Writes a result or a model to a .nxt file, whole or not at all, and says where the bytes went.

    For a model, `original` is the network it was made from: then only the layers that differ are described. With `graph`
    (True for a result, sample inputs for a model) the file carries its ONNX graph, and `enxuto.runtime.open` runs it without
    torch. With `device` the C reader needs little memory: the index is plain, and the slow coders are left out. `about`
    is for people (an author, a licence, a date), shown by `enxuto inspect` and counted with the header.
    Raises: ArtifactError for a model that cannot be kept; ExportError for one without a graph; OutputError when the file
    cannot be written.
    """
    model, path = _model(what), world.own_path(path)
    if isinstance(what, Result):
        original = what.task.model
    if graph is False:
        return save_model(model, path, original=original, device=device, about=about)
    batches = what.task.calibration if isinstance(what, Result) and graph is True else graph
    if batches is True:
        raise ExportError(f"'{path}' needs sample inputs to trace the graph with; give graph=[batch].")
    with tempfile.TemporaryDirectory() as folder:
        written = export_model(model, Path(folder) / "graph.onnx", calibration=batches)
        return save_model(model, path, original=original, graph=written.path, device=device, about=about)


def export(
    what: Result | nn.Module,
    path: PathLike,
    *,
    calibration: Iterable[Batch] | None = None,
    precision: Literal["auto", "fp32", "int8", "int8-dynamic", "int4"] = "auto",
    max_error: float = LARGE_ERROR,
) -> OnnxFile:
    """Writes a result or a model as an .onnx file that was run and compared with torch.

    "auto" is the precision that was chosen when the result was measured, and fp32 for a model. "int8" is on integers with ranges
    of the calibration batches, "int8-dynamic" has a range for each call in matrix products, "int4" weights of 4 bits there.
    Layers that would take outputs further off than `max_error` of their size are computed more exactly; `notes` of what comes
    back name them with what they would cost, and say where a file is worse than the network, by its outputs and, for a result,
    by its measured quality.
    Raises: ExportError for another kind of file, a model that cannot be exported, or one without sample inputs.
    """
    if as_path(path).suffix != ".onnx":
        raise ExportError(f"'{path}' is no kind of file enxuto exports to; name it '{Path(path).stem}.onnx'.")
    model, path = _model(what), world.own_path(path)
    if isinstance(what, Result):
        calibration = what.task.calibration if calibration is None else calibration
        if precision == "auto":
            precision = "int8" if what.evaluation.compressed.precision == "int8" else "fp32"
    if calibration is None:
        raise ExportError(f"'{path}' needs sample inputs to trace the model with; give calibration=[batch].")
    made = export_model(
        model, path, calibration=calibration, precision="fp32" if precision == "auto" else precision, max_error=max_error
    )
    return replace(made, notes=(*made.notes, *_measured(what, made.precision))) if isinstance(what, Result) else made


def _measured(result: Result, precision: str) -> list[str]:
    """A note when the file of this precision was measured and is worse than the compressed network itself."""
    whole = result.evaluation.compressed.quality
    fraction = is_fraction(whole, result.evaluation.original.quality)
    return [
        f"the {precision} file has quality {shown(file.quality, fraction)}, where the compressed network itself has "
        f"{shown(whole, fraction)}"
        for file in result.evaluation.exports
        if file.precision == precision and file.quality < whole - TOLERANCE * abs(whole)
    ]


def evaluate(task: Task, what: nn.Module | PathLike) -> Evaluation:
    """The task's model beside a compressed one (a model or a .nxt file), each number measured on its file.

    Raises: ArtifactError when the file is damaged or of another network.
    """
    if not isinstance(task, Task):
        raise TaskError(f"task is {type(task).__name__}, not a Task; write Task(model, calibration=[batch]).")
    with tempfile.TemporaryDirectory() as name:
        folder = writable_folder(name)
        artifact = folder / "small.nxt"
        if isinstance(what, nn.Module):
            save_model(what, artifact, original=task.model)
        else:
            load(what, into=task.model)  # a clear error before the long work
            try:
                artifact.write_bytes(Path(what).read_bytes())
            except OSError as error:
                raise OutputError(f"'{what}' could not be copied for the measurement: {error}; free some disk.") from error
        save_original(task.model, folder / ORIGINAL)
        return measure(task, artifact, folder, folder / ORIGINAL)[0]


def report(what: Result | PathLike, path: PathLike, *, sensitivity: Sensitivity | PathLike | None = None) -> None:
    """Writes a result (or the result.json of one, or the folder that holds it) as one HTML page that opens offline.

    It shows the `sensitivity` that is given, or the newest that `ex.sensitivity` has kept in the folder of the result.
    Raises: ArtifactError for a result.json, or a sensitivity, that is none; OutputError when the page cannot be written.
    """
    if isinstance(what, nn.Module):
        raise TaskError(f"{type(what).__name__} is a model, and a report is of a result; give what compress returned.")
    if not isinstance(what, (Result, str, os.PathLike)):
        raise TaskError(
            f"{named('what', what)} is no result and no path of one; give what compress returned, or the folder it wrote."
        )
    document = Document.from_json(what.document()) if isinstance(what, Result) else read_document(what)
    if sensitivity is None:
        sensitivity = newest_sensitivity(what.artifact.parent if isinstance(what, Result) else as_path(what))
    elif not isinstance(sensitivity, Sensitivity):
        sensitivity = Sensitivity.load(sensitivity)
    write_html(document, world.own_path(path), sensitivity)


def _model(what: Result | nn.Module) -> nn.Module:
    if isinstance(what, Result):
        return what.model
    if not isinstance(what, nn.Module):
        raise TaskError(
            f"{type(what).__name__} is neither a result nor a model; give what compress returned, or a torch.nn.Module."
        )
    return what
