"""The options that several commands share, each written down once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GOALS = "The goal"
SHARED = "Every command"

TaskFile = Annotated[
    Path,
    typer.Argument(metavar="TASK.PY", help="Python file that defines `task`; `enxuto init` writes one.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.", rich_help_panel=SHARED)]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        help="The same seed gives the same bytes; otherwise the task's own counts.",
        rich_help_panel=SHARED,
        show_default=False,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bar and no remarks, only the result.", rich_help_panel=SHARED)
]
Debug = Annotated[bool, typer.Option("--debug", help="Say what is being done, and show tracebacks.", rich_help_panel=SHARED)]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FOLDER", help="Where small.nxt, small.onnx, result.json and report.html go."),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="BYTES", help="Largest .nxt file: 100kB, 1.5MB.", rich_help_panel=GOALS, show_default=False),
]
Macs = Annotated[
    str | None,
    typer.Option(
        "--macs",
        metavar="FRACTION",
        help="Multiply-accumulates left: 0.5 or 50%.",
        rich_help_panel=GOALS,
        show_default=False,
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="FRACTION",
        help="Quality that may be lost, absolute: 0.5% or 0.005 is half a point.",
        rich_help_panel=GOALS,
        show_default=False,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="BYTES",
        help="Most that the job may take beyond what it starts with: 2GB. Batches come in parts where they must.",
        show_default=False,
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="TIME",
        help="How long to search: 90s, 20m, 1h. More time, better result.",
        rich_help_panel=GOALS,
        show_default=False,
    ),
]
