"""The one verb: from a task and a goal (or a recipe) to a smaller network, its files and the proof."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from enxuto import world
from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.artifact.save import Entry, ledger, load, save
from enxuto.errors import RecipeError, TargetError, TaskError
from enxuto.evaluation.quality import agreement
from enxuto.files import folder_or_own, writable_folder
from enxuto.judging import quality
from enxuto.measure import ORIGINAL, measure, save_original
from enxuto.plan.pace import ready
from enxuto.plan.search import Search, smallest_file
from enxuto.plan.verdict import advise, judge
from enxuto.recipe import checked, run
from enxuto.records import Record
from enxuto.result import Result
from enxuto.sizes import file_bytes, format_bytes, parse_seconds
from enxuto.task import Step, Target, Task

DEFAULT_TIME_S = 600.0
WORK = ".work"  # beside the files, while it lasts


def compress(
    task: Task,
    *,
    steps: Sequence[Step] | None = None,
    target: Target | None = None,
    time: str | float | None = None,
    out: str | Path | None = None,
    memory: str | int | None = None,
) -> Result:
    """A physically smaller network, its files, and original and result measured beside each other on those files.

    Give `steps` to run a recipe, or `target` to have one found within `time` ("20 min"; 10 minutes unless given). `out` is
    a folder for small.nxt, small.onnx, original.onnx and result.json, without it a temporary one that goes when the process
    ends; a run that was killed goes on when it is started again with the same folder. Ctrl-C during a search ends it with the
    best result so far. `memory` ("2 GB") bounds what the job takes beyond what the process holds: calibration comes in parts,
    training as `Recover(memory=)`.
    In several processes (torchrun) training is shared; the first measures, and writes all files. A search is for one process.
    Raises: TargetError when neither or an impossible goal is given, or a time beside steps; OutputError when `out` cannot
    be written; LimitError when the memory is not enough, before anything is done.
    """
    steps = _asked(task, steps, target, time)
    given, said = task, ""
    if memory is not None:
        from enxuto.allowance import allowed  # it needs much of torch that other jobs do without

        task, said = allowed(task, memory, steps)
    seconds = DEFAULT_TIME_S if time is None else parse_seconds(time)
    with folder_or_own(None if out is None or world.rank() else out) as folder:
        work = writable_folder(folder / WORK)
        before = save_original(task.model, work / ORIGINAL)
        search = None
        if steps is not None and (evaluate := task.evaluate) is not None:
            world.first(lambda: float(quality(evaluate, task.model).mean()))  # what is wrong with it shows before the long work
        if target is not None:
            search = _search(task, target, seconds, work, before)
            steps = search.recipes[search.best]
        assert steps is not None
        kept = FolderCheckpoints(Path(world.same(str(work))))
        model, records = run(task, steps, checkpoints=kept if search is None else search.checkpoints)

        def proved() -> Result:
            made = replace(_measured(task, target, search, tuple(steps), (model, records), folder, before), task=given)
            if said:
                made = replace(made, evaluation=replace(made.evaluation, notes=(*made.evaluation.notes, said)))
            made.write(folder / "result.json")
            shutil.rmtree(work, ignore_errors=True)
            return replace(made, task=None, model=None) if several else made  # type: ignore[arg-type]

        several = world.size() > 1
        result = world.first(proved)
        if several:
            result = replace(result, task=given, model=load(result.artifact, into=task.model))
    return result


def _measured(
    task: Task,
    target: Target | None,
    search: Search | None,
    steps: tuple[Step, ...],
    found: tuple[nn.Module, tuple[Record, ...]],
    folder: Path,
    before: Sequence[Entry],
) -> Result:
    """The files of what was found, and their measurement."""
    save(found[0], artifact := folder / "small.nxt", original=task.model)
    original = folder / WORK / ORIGINAL
    evaluation, exports = measure(task, artifact, folder, original, max_drop=target.drop if target else math.inf)
    verdict = judge(target, evaluation)
    return Result(
        task=task,
        model=load(artifact, into=task.model),
        steps=steps,
        record=found[1],
        ledger=tuple(ledger(artifact)),
        before=tuple(before),
        evaluation=evaluation,
        artifact=artifact,
        exports=exports,
        target=target,
        met=all(line.met for line in verdict),
        verdict=tuple(line.words for line in verdict),
        advice=advise(search, verdict) if search is not None else (),
        history=tuple(sorted([*search.trials, *search.given_up], key=lambda it: it.seconds)) if search is not None else (),
        judged_quality=float(search.before.mean()) if search is not None else None,
    )


def _asked(task: Task, steps: Sequence[Step] | None, target: Target | None, time: str | float | None) -> tuple[Step, ...] | None:
    """The recipe, None for a search. Raises: what is wrong with what `compress` was given."""
    if not isinstance(task, Task):
        raise TaskError(f"task is {type(task).__name__}, not a Task; write Task(model, calibration=[batch]).")
    if (steps is None) == (target is None):
        raise TargetError("give either steps=[...], a recipe, or target=Target(...), a goal to find one for.")
    if steps is not None and time is not None:
        raise TargetError(f"time={time!r} bounds a search, and steps=[...] says what is done; leave one of them out.")
    if target is not None and world.size() > 1:
        raise TargetError(
            f"target= searches by the clock of one process, and there are {world.size()}; search in one, and run what it "
            "found in all: compress(task, steps=result.steps)."
        )
    if target is not None and not isinstance(target, Target):
        raise TargetError(f"target is {type(target).__name__}, not a Target; write Target(size='100 kB', max_drop=0.005).")
    found = checked(steps) if steps is not None else None
    if found == ():
        raise RecipeError("steps is empty and would change nothing; write for example steps=[Quantize(bits=8)].")
    return found


def _largest_floats(path: Path) -> str:
    """Which floats fill most of a file, where they are most of it."""
    floats = sorted((entry for entry in ledger(path) if entry.kind == "float"), key=lambda entry: -entry.bytes)
    if 2 * sum(entry.bytes for entry in floats) < file_bytes(path):
        return ""
    shown = ", ".join(f"'{entry.name}'" for entry in floats[:3]) + (", ..." if len(floats) > 3 else "")
    return f", mostly for what no layer kind covers and stays in float: {shown}"


def _search(task: Task, target: Target, seconds: float, work: Path, before: Sequence[Entry]) -> Search:
    original_bytes = file_bytes(work / ORIGINAL)
    limit = target.limit_bytes(original_bytes)
    smallest = smallest_file(task, work)  # made in any case: it compiles what every recipe needs, before the clock runs
    floor = file_bytes(smallest)
    if limit < floor:
        raise TargetError(
            f"a file of {format_bytes(limit)} is asked for, but names, shapes and next to no value of this network, "
            f"whose weights take {format_bytes(sum(entry.bytes for entry in before))}, already need "
            f"{format_bytes(floor)}{_largest_floats(smallest)}; ask for more than that."
        )
    evaluate = task.evaluate or agreement(task.model, task.calibration, outputs=task.outputs)
    ready()
    search = Search(task, target, seconds, work, evaluate, limit)
    search.run()
    if search.best < 0:
        why = " ".join(dict.fromkeys([*(trial.why for trial in search.given_up), *search.history.refused.values()]))
        raise TargetError(
            f"no recipe could be applied to this network; {why or 'inspect it to see which layers enxuto can treat.'}"
        )
    return search
