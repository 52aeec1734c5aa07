"""The one verb: from a task and a goal (or a recipe) to a smaller network, its files and the proof."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.artifact.save import Entry, ledger, load, save
from enxuto.errors import ExportError, TargetError
from enxuto.evaluate.compare import Files, evaluate_pair
from enxuto.evaluate.measurement import Evaluation
from enxuto.evaluate.quality import agreement
from enxuto.export import export
from enxuto.files import writable_folder, whole_file
from enxuto.plan.search import Search, smallest_bytes
from enxuto.plan.verdict import advise, judge
from enxuto.progress import say
from enxuto.recipe import run
from enxuto.result import Result
from enxuto.sizes import format_bytes, parse_seconds, tensor_bytes
from enxuto.task import Step, Target, Task

logger = logging.getLogger(__name__)
DEFAULT_TIME_S = 600.0


def compress(
    task: Task,
    *,
    steps: Sequence[Step] | None = None,
    target: Target | None = None,
    time: str | float | None = None,
    out: str | Path | None = None,
) -> Result:
    """A physically smaller network, its files, and original and result measured beside each other on those files.

    Give `steps` to run a recipe, or `target` to have one found within `time` ("20 min"; 10 minutes unless given). `out` is
    a folder for small.nxt, small.onnx, original.onnx and result.json; a run that was killed goes on where it was when it is
    started again with the same folder. Ctrl-C during a search ends it with the best result so far.
    Raises: TargetError when neither or an impossible goal is given; OutputError when `out` cannot be written.
    """
    if (steps is None) == (target is None):
        raise TargetError("give either steps=[...], a recipe, or target=Target(...), a goal to find one for.")
    seconds = DEFAULT_TIME_S if time is None else parse_seconds(time)
    folder = writable_folder(out if out is not None else tempfile.mkdtemp(prefix="enxuto-"))
    work = writable_folder(folder / ".work")
    before = _save_original(task.model, work / "original.safetensors")
    search = None
    if target is not None:
        search = _search(task, target, seconds, work, before)
        steps = search.recipes[search.best]
    assert steps is not None
    model, records = run(task, steps, checkpoints=FolderCheckpoints(work))
    artifact = folder / "small.nxt"
    save(model, artifact, original=task.model)
    max_drop = target.drop if target is not None else math.inf
    evaluation, exports = _evaluate(task, model, artifact, folder, work / "original.safetensors", max_drop)
    verdict = judge(target, evaluation) if target is not None else ()
    result = Result(
        task=task,
        model=load(artifact, into=task.model),
        steps=tuple(steps),
        record=records,
        ledger=tuple(ledger(artifact)),
        before=before,
        evaluation=evaluation,
        artifact=artifact,
        exports=exports,
        target=target,
        met=all(line.met for line in verdict),
        verdict=tuple(line.words for line in verdict),
        advice=advise(search, verdict) if search is not None else (),
        history=tuple(search.trials) if search is not None else (),
    )
    result.write(folder / "result.json")
    shutil.rmtree(work, ignore_errors=True)
    return result


def _search(task: Task, target: Target, seconds: float, work: Path, before: Sequence[Entry]) -> Search:
    original_bytes = (work / "original.safetensors").stat().st_size
    limit = target.limit_bytes(original_bytes)
    if limit < math.inf:
        floor = smallest_bytes(task, work)
        if limit < floor:
            raise TargetError(
                f"a file of {format_bytes(limit)} is asked for, but names, shapes and one value a layer of this network "
                f"({sum(entry.bytes for entry in before):,} bytes of weights) already take {format_bytes(floor)}; ask for more than that."
            )
    evaluate = task.evaluate or agreement(task.model, task.calibration)
    search = Search(task, target, seconds, work, evaluate, limit)
    search.run()
    if search.best < 0:
        raise TargetError("no recipe could be applied to this network; inspect it to see which layers enxuto can treat.")
    return search


def _save_original(model: nn.Module, path: Path) -> tuple[Entry, ...]:
    """The original as a plain safetensors file, the size everything is compared with; each shared tensor once."""
    tensors, entries, seen = {}, [], set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous().clone()
        entries.append(Entry(name.rpartition(".")[0], "float", name, tensor_bytes(tensor)))
    with whole_file(path) as temporary:
        save_file(tensors, temporary)
    return tuple(entries)


def _evaluate(
    task: Task, model: nn.Module, artifact: Path, folder: Path, original: Path, max_drop: float
) -> tuple[Evaluation, dict[str, Path]]:
    """Exports both networks, measures everything on the files, and leaves the chosen export as small.onnx."""
    say("exporting")
    notes: list[str] = []
    onnx = {"original": folder / "original.onnx", "fp32": folder / "small.fp32.onnx", "int8": folder / "small.int8.onnx"}
    written: dict[str, Path] = {}
    for kind, path in onnx.items():
        try:
            made = export(
                task.model if kind == "original" else model,
                path,
                calibration=task.calibration,
                precision="int8" if kind == "int8" else "fp32",
            )
            written[kind] = path
            notes += [f"{path.name}: {note}" for note in made.notes]
        except ExportError as error:
            path.unlink(missing_ok=True)
            notes.append(f"{path.name} could not be exported: {error}")
            logger.warning("%s", notes[-1])
    say("measuring")
    files = Files(
        original_bytes=original.stat().st_size,
        compressed_bytes=artifact.stat().st_size,
        original_onnx=written.pop("original", None),
        exports=written,
    )
    reload = functools.partial(load, artifact.resolve(), into=task.model)
    evaluation = evaluate_pair(task, files, reload, max_drop=max_drop)
    evaluation = replace(evaluation, notes=(*notes, *evaluation.notes))
    chosen = written.get(evaluation.compressed.precision)
    if chosen is not None:
        with whole_file(folder / "small.onnx") as temporary:
            shutil.copyfile(chosen, temporary)
    return evaluation, written
