"""What `enxuto memory --limit` and `--device` say: ways to train within a limit, and the devices that hold the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from enxuto.cli.terminal import Session
    from enxuto.memory import Fit, Option, Plan
    from enxuto.memory.training import MakeOptimizer, Precision
    from enxuto.task import Task

EVERY = "all"
TRAINERS = ("lightning", "transformers", "recover")


def check(limit: str | None, names: Sequence[str], file: Path | None) -> None:
    """Says what is wrong with the options before a task file runs.

    Raises: RangeError for a limit that is no size; TargetError for an unknown device; TaskError for a broken file of devices.
    """
    from enxuto.memory.boards import devices, find_device
    from enxuto.sizes import parse_bytes

    if limit is not None:
        parse_bytes(limit, "limit")
    known = devices(file)
    for name in names:
        if name != EVERY:
            find_device(name, known)


def planned(task: Task, limit: str, optimizer: MakeOptimizer, precision: Precision, batch_size: int | None) -> Plan:
    """The ways to train the task within the limit.

    Raises: TaskError when the task cannot train; LimitError when nothing fits.
    """
    from enxuto.errors import TaskError
    from enxuto.memory import plan

    if task.train is None or task.loss is None:
        raise TaskError("--limit plans a training step, but the task file has no train and loss; add them, or leave --limit out.")
    batch = next(iter(task.train), None)
    return plan(task.model, batch, limit, loss=task.loss, optimizer=optimizer, precision=precision, samples_per_update=batch_size)


def fitted(task: Task, names: Sequence[str], file: Path | None) -> list[tuple[int, Fit]]:
    """Whether one sample of the task runs on each device, in 32 and in 8 bits.

    Raises: TargetError for an unknown device; TaskError when the file of devices cannot be read.
    """
    from enxuto.memory import devices, fits
    from enxuto.progress import counted

    known = devices(file)
    wanted = list(known) if EVERY in names else list(dict.fromkeys(names))
    questions = [(bits, name) for name in wanted for bits in (32, 8)]
    asked = counted(questions, "laying out", len(questions))
    return [(bits, fits(task.model, task.sample, name, bits=bits, devices=known)) for bits, name in asked]  # type: ignore[arg-type]


def plan_data(plan: Plan) -> dict[str, Any]:
    """What scripts read of a plan."""
    options = [asdict(option) | {"settings": {name: option.settings(name) for name in TRAINERS}} for option in plan.options]  # type: ignore[arg-type]
    return {
        "limit_bytes": plan.limit_bytes,
        "samples_per_update": plan.samples,
        "largest_batch": plan.largest_batch,
        "options": options,
    }


def fit_data(bits: int, fit: Fit) -> dict[str, Any]:
    """What scripts read of one device."""
    return {
        "device": fit.device.name,
        "bits": bits,
        "fits": fit.fits,
        "ram_bytes": fit.ram_bytes,
        "flash_bytes": fit.flash_bytes,
        "peak_path": fit.peak_path,
        "reordered": fit.reordered,
        "verdict": fit.verdict,
    }


def show(run: Session, plan: Plan | None, fits: Sequence[tuple[int, Fit]]) -> None:
    """Prints what was found of both questions."""
    if plan is not None:
        largest = plan.largest_batch or "none, not even one sample"
        run.show("", plan_table(plan), f"the largest batch without any change: {largest}")
    if fits:
        run.show("", fit_table(fits), *(fit.verdict for _, fit in fits if not fit.fits or len(fits) <= 2))


def plan_table(plan: Plan) -> Table:
    """The options, the best first."""
    from enxuto.reports import words
    from enxuto.reports.tables import plain_table
    from enxuto.sizes import format_bytes

    heads = ["optimizer", "precision", "batch", "passes", "checkpoints", "peak", "time", "gradients"]
    rows = [
        (
            *(option.optimizer, option.precision, str(option.batch_size), str(option.accumulation)),
            words.printable(_layers(option)),
            format_bytes(option.peak_bytes),
            words.MISSING if option.time is None else f"{option.time:.2f}x",
            "of the batch" if option.exact else "batch norms see parts",
        )
        for option in plan.options
    ]
    title = f"{plan.samples} samples an update within {format_bytes(plan.limit_bytes)}, the best first"
    return plain_table(title, heads, rows, left=2)


def fit_table(found: Sequence[tuple[int, Fit]]) -> Table:
    """What each device has and what the network needs there."""
    from enxuto.reports.tables import plain_table
    from enxuto.sizes import format_bytes

    rows = [
        (
            fit.device.name,
            f"{bits} bit",
            "fits" if fit.fits else "no",
            f"{format_bytes(fit.ram_bytes)} of {format_bytes(fit.device.ram_bytes)}",
            f"{format_bytes(fit.flash_bytes)} of {format_bytes(fit.device.flash_bytes)}",
        )
        for bits, fit in found
    ]
    return plain_table("one sample on each device", ["device", "", "", "RAM", "flash"], rows, left=3)


def _layers(option: Option) -> str:
    paths = option.checkpoint
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "") or "none"
