"""A compressed network beside its original: both exported, everything measured on the files that ship."""

from __future__ import annotations

import functools
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from enxuto.artifact.save import Entry, load
from enxuto.errors import ExportError
from enxuto.evaluation.compare import Files, evaluate_pair
from enxuto.evaluation.measurement import Evaluation
from enxuto.exporters import Precision, export
from enxuto.files import whole_file
from enxuto.layers.state import states
from enxuto.progress import say
from enxuto.sizes import file_bytes, tensor_bytes
from enxuto.task import Task

logger = logging.getLogger(__name__)
ORIGINAL = "original.safetensors"  # the file everything is compared with


def save_original(model: nn.Module, path: Path) -> tuple[Entry, ...]:
    """Writes the original as a plain safetensors file, each shared tensor once, and says where its bytes are."""
    tensors, entries, seen = {}, [], set()
    extra = states(model)
    for name, tensor in model.state_dict().items():
        if name in extra:
            continue
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor.detach().cpu().contiguous().clone()
        entries.append(Entry(name.rpartition(".")[0], "float", name, tensor_bytes(tensor)))
    with whole_file(path) as temporary:
        save_file(tensors, temporary, extra or None)
    return tuple(entries)


def measure(
    task: Task, artifact: Path, folder: Path, original: Path, *, max_drop: float = math.inf
) -> tuple[Evaluation, dict[str, Path]]:
    """What the artifact and its exports cost and give, and the exported files by precision.

    Writes original.onnx, small.fp32.onnx, small.int8.onnx and the better of the two as small.onnx into the folder. What
    cannot be exported or judged, whatever the reason, becomes a note and leaves no file: the rest of the result stands.
    """
    notes: list[str] = []
    written: dict[str, Path] = {}
    wanted: tuple[tuple[str, Precision], ...] = (("original", "fp32"), ("fp32", "fp32"), ("int8", "int8"))
    for done, (name, precision) in enumerate(wanted):
        say("exporting", done, len(wanted))
        path = folder / ("original.onnx" if name == "original" else f"small.{name}.onnx")
        model = task.model if name == "original" else load(artifact, into=task.model)
        try:
            made = export(model, path, calibration=task.calibration, precision=precision)
        except Exception as error:  # exporters run code of others on networks nobody here knows
            path.unlink(missing_ok=True)
            why = error if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
            notes.append(f"{path.name} could not be exported: {why}")
            logger.warning("%s", notes[-1])
        else:
            written[name] = path
            notes += [f"{path.name}: {note}" for note in made.notes]
    say("exporting", len(wanted), len(wanted))
    say("measuring")
    files = Files(
        original_bytes=file_bytes(original),
        compressed_bytes=file_bytes(artifact),
        original_onnx=written.pop("original", None),
        exports=written,
    )
    reload = functools.partial(load, artifact.resolve(), into=task.model)
    evaluation = evaluate_pair(task, files, reload, max_drop=max_drop)
    for name in written.keys() - {item.precision for item in evaluation.exports}:
        written.pop(name).unlink(missing_ok=True)
    chosen = written.get(evaluation.compressed.precision)
    if chosen is not None:
        with whole_file(folder / "small.onnx") as temporary:
            shutil.copyfile(chosen, temporary)
    else:
        (folder / "small.onnx").unlink(missing_ok=True)  # of an earlier run, and of another network
    return replace(evaluation, notes=(*notes, *evaluation.notes)), written
