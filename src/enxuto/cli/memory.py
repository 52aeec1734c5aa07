"""`enxuto memory`: what an inference and a training step of a task file hold in memory, foreseen or also measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from enxuto.cli.options import Debug, Json, Quiet, Seed, TaskFile
from enxuto.cli.terminal import Session, session

if TYPE_CHECKING:
    from enxuto.memory import Profile
    from enxuto.memory.training import MakeOptimizer, Precision
    from enxuto.reports.document import MemoryUse
    from enxuto.task import Task

SHOW, FITS = "What is shown", "What fits"
KINDS = (".svg", ".png", ".html", ".json")
MOST_LAYERS = 10
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}


BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Samples of a batch; otherwise as the task gives them.", show_default=False),
]
Optimizer = Annotated[Literal["adam", "adamw", "sgd"], typer.Option("--optimizer", help="Of the training step.")]
InPrecision = Annotated[
    Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"], typer.Option("--precision", help="As lightning-fabric has it.")
]
Really = Annotated[bool, typer.Option("--record", help="Run it really too, and show what was measured.", rich_help_panel=SHOW)]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Also a picture (.svg, .png), a page (.html) or the profile itself (.json).",
        rich_help_panel=SHOW,
        show_default=False,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--limit",
        metavar="SIZE",
        help='Also how to train within it, "512 MB": batch, accumulation, checkpoints, optimizer, precision.',
        rich_help_panel=FITS,
        show_default=False,
    ),
]
OnDevices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help='Also whether an inference fits this device, "cortex-m4"; again for another one, "all" for all.',
        rich_help_panel=FITS,
        show_default=False,
    ),
]
MoreDevices = Annotated[
    Path | None,
    typer.Option(
        "--devices", metavar="FILE", help="More devices, as docs/arena.md has them.", rich_help_panel=FITS, show_default=False
    ),
]


def memory(  # noqa: PLR0913  each argument is an option of the command
    task_file: TaskFile,
    batch_size: BatchSize = None,
    optimizer: Optimizer = "adam",
    precision: InPrecision = "32-true",
    record: Really = False,
    limit: Limit = None,
    device: OnDevices = None,
    devices: MoreDevices = None,
    out: Picture = None,
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where the memory of a network goes, at inference and, if the task has train and loss, in a training step.

    \b
    enxuto memory task.py                              foreseen from shapes: nothing is run or allocated
    enxuto memory task.py --batch-size 256 --record    also run, and measured beside the prediction
    enxuto memory task.py --out memory.svg             memory over time as a picture
    enxuto memory task.py --limit "512 MB"             how to train within it
    enxuto memory task.py --device cortex-m4           does it fit this device?
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        import torch

        from enxuto.cli import fitting
        from enxuto.cli.taskfile import load_task
        from enxuto.errors import OutputError
        from enxuto.files import writable_folder

        if out is not None:
            if out.suffix not in KINDS:
                raise OutputError(f"'{out}' is no kind of file that can be written; end it in one of {', '.join(KINDS)}.")
            writable_folder(out.parent)
        fitting.check(limit, device or [], devices)
        with run.progress():
            task = load_task(task_file, seed)
            make = getattr(torch.optim, OPTIMIZERS[optimizer])
            plan = None if limit is None else fitting.planned(task, limit, make, precision, batch_size)
            fits = fitting.fitted(task, device or [fitting.EVERY], devices) if device or devices else []
            runs = _runs(task, batch_size=batch_size, optimizer=optimizer, precision=precision, record=record)
        name = task.name or type(task.model).__name__
        run.answer(
            {"file": str(task_file), "model": name, "optimizer": optimizer, "precision": precision}
            | {"runs": [each.data() for each in runs], "out": None if out is None else str(out)}
            | {"plan": None if plan is None else fitting.plan_data(plan), "devices": [fitting.fit_data(*each) for each in fits]}
        )
        _show(run, name, runs)
        fitting.show(run, plan, fits)
        if out is not None:
            _write(out, name, runs)
            run.show(f"{out}  {_what(out)}")


@dataclass(frozen=True)
class _Run:
    """One kind of run: foreseen, and measured when that was asked for."""

    what: str
    batch: int
    predicted: Profile
    recorded: Profile | None

    @property
    def profiles(self) -> dict[str, Profile]:
        """The profiles there are, by name."""
        return {"predicted": self.predicted} | ({"recorded": self.recorded} if self.recorded is not None else {})

    def data(self) -> dict[str, Any]:
        """What scripts read."""
        found = {name: _data(profile) for name, profile in self.profiles.items()}
        return {"what": self.what, "batch": self.batch, "predicted": None, "recorded": None} | found

    def use(self) -> MemoryUse:
        """What tables and pages are made of."""
        from dataclasses import asdict

        from enxuto.memory.outline import outline
        from enxuto.reports.document import MemoryRun, MemoryUse

        before, *after = (MemoryRun(**asdict(outline(profile))) for profile in self.profiles.values())
        words = "; ".join(dict.fromkeys(profile.words for profile in self.profiles.values() if profile.words))
        names = ("predicted", "recorded")
        return MemoryUse(what=self.what, names=names, batch=self.batch, before=before, after=next(iter(after), None), words=words)


def _runs(task: Task, *, batch_size: int | None, optimizer: str, precision: Precision, record: bool) -> list[_Run]:
    """An inference of the first calibration batch, and a training step of the first training batch if there is one."""
    import torch

    from enxuto.batches import samples
    from enxuto.memory import predict
    from enxuto.memory import record as measure
    from enxuto.memory.training import INFERENCE, TRAINING
    from enxuto.progress import say

    make: MakeOptimizer = getattr(torch.optim, OPTIMIZERS[optimizer])
    wanted: list[tuple[str, Any, dict[str, Any]]] = [(INFERENCE, task.sample, {})]
    if task.train is not None and task.loss is not None:
        wanted.append((TRAINING, next(iter(task.train), None), {"loss": task.loss, "optimizer": make}))
    found = []
    for what, batch, more in wanted:
        say(f"foreseeing the {what}")
        more |= {"batch_size": batch_size, "precision": precision}
        predicted = predict(task.model, batch, **more)
        recorded = measure(task.model, batch, **more) if record else None
        found.append(_Run(what, batch_size or samples(batch), predicted, recorded))
    return found


def _data(profile: Profile) -> dict[str, Any]:
    moment = profile.moments[profile.peak]
    return {
        "peak_bytes": profile.peak_bytes,
        "peak": {"moment": profile.peak, "phase": moment.phase, "path": moment.path, "operator": moment.operator},
        "by_category": profile.by_category,
        "activation_bytes": profile.activation_bytes,
        "layers": [{"path": path, "bytes": sum(parts.values()), "categories": parts} for path, parts in profile.by_layer.items()],
        "moments": len(profile.moments),
        "seconds": profile.seconds,
        "peak_rss_bytes": max(profile.rss_bytes) if profile.rss_bytes else None,
        "words": profile.words,
    }


def _show(run: Session, name: str, runs: list[_Run]) -> None:
    from enxuto.reports import memory_layers_table, memory_table, words
    from enxuto.sizes import format_bytes

    uses = [each.use() for each in runs]
    run.show(memory_table(uses, f"{words.printable(name)}: memory at the fullest moment"))
    for each, use in zip(runs, uses, strict=True):
        for which, profile in each.profiles.items():
            moment = profile.moments[profile.peak]
            place = f"'{words.printable(moment.path)}'" if moment.path else "the model itself"
            run.show(f"{use.what}, {which}: fullest in {moment.phase}, {place}, {moment.operator}")
            if profile.words:
                run.remark(f"note: {profile.words}")
        if each.recorded is not None and each.recorded.rss_bytes and each.recorded.seconds is not None:
            rss = format_bytes(max(each.recorded.rss_bytes))
            run.show(f"{use.what}, recorded: the whole process held {rss} (RSS); {words.seconds(each.recorded.seconds)}")
    run.show("", memory_layers_table(uses[-1], MOST_LAYERS))


def _write(out: Path, name: str, runs: list[_Run]) -> None:
    from enxuto.memory import draw
    from enxuto.reports.page import write_memory_html

    if out.suffix == ".html":
        write_memory_html(name, [each.use() for each in runs], out)
    elif out.suffix == ".json":
        (runs[-1].recorded or runs[-1].predicted).save(out)
    else:
        several = any(each.recorded is not None for each in runs)
        named = [(each.what, which, profile) for each in runs for which, profile in each.profiles.items()]
        draw({f"{what}, {which}" if several else what: profile for what, which, profile in named}, out)


def _what(out: Path) -> str:
    return {
        ".html": "memory over time and by layer; opens offline",
        ".json": "the profile: enxuto.memory.Profile.load",
    }.get(out.suffix, "memory over time and by layer")
