"""From a latency to MACs: channels are cut, without training, until the clock of the runtime agrees."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import median

from enxuto.errors import ExportError, NothingChangedError, TargetError
from enxuto.evaluation.latency import latencies
from enxuto.exporters import export
from enxuto.progress import counted
from enxuto.recipe import line
from enxuto.steps.channels import PruneChannels
from enxuto.task import Task

logger = logging.getLogger(__name__)
ATTEMPTS = 5
STRICTER = 0.75  # what each attempt leaves of the MACs of the one before


def channels_for_latency(task: Task, latency: float, folder: Path, *, macs: float | None = None) -> tuple[PruneChannels, ...]:
    """The gentlest cut tried whose fastest export takes at most the fraction `latency` of the original; none if none is needed.

    Speed does not depend on the weights, so nothing is trained. Original and exports are timed in one interleaved run.
    Raises: TargetError when the network cannot be exported, or no cut that was tried is fast enough.
    """
    reached: list[str] = []
    goals: list[float | None] = [macs] if macs is not None else [None]
    goals += [(macs or 1.0) * latency * STRICTER**attempt for attempt in range(ATTEMPTS)]
    for goal in counted(goals, "looking for channels to cut", len(goals)):
        steps = () if goal is None else (PruneChannels(macs=goal, multiple_of=8),)
        try:
            share = _share(task, steps, folder)
        except (NothingChangedError, TargetError) as error:
            what = "a file to be timed" if goal is None else f"{goal:.0%} of the MACs"
            raise TargetError(f"latency={latency} of the original is asked for, and {what} cannot be had: {error}") from error
        reached.append(f"{share:.0%} with {line(steps[0]) if steps else 'nothing cut'}")
        logger.info("latency %s", reached[-1])
        if share <= latency:
            return steps
    raise TargetError(f"latency={latency} of the original is asked for, but the clock gave {', '.join(reached)}; ask for more.")


def _share(task: Task, steps: tuple[PruneChannels, ...], folder: Path) -> float:
    model = task.model
    for step in steps:
        model, _ = step(model, task)
    files = {"original": folder / "speed.original.onnx", "fp32": folder / "speed.fp32.onnx", "int8": folder / "speed.int8.onnx"}
    try:
        export(task.model, files["original"], calibration=task.calibration)
        export(model, files["fp32"], calibration=task.calibration)
    except ExportError as error:
        raise TargetError(f"a latency is asked for, but the network cannot be exported to be timed: {error}") from error
    try:
        export(model, files["int8"], calibration=task.calibration, precision="int8", rounding="nearest")
    except ExportError as error:  # off by half, or with layers that the runtime does not take: then float is what ships
        logger.info("int8 is left out of the clock: %s", error)
        del files["int8"]
    clocks = {name: median(times) for name, times in latencies(files, task.sample, rounds=15).items()}
    return min(time for name, time in clocks.items() if name != "original") / clocks["original"]
