"""`enxuto init`: a commented task file that works as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from enxuto.cli.options import Debug, Json, Quiet
from enxuto.cli.terminal import session

TEMPLATE = Path(__file__).with_name("template.py")


def init(
    path: Annotated[Path, typer.Argument(metavar="TASK.PY", help="The file to write.")] = Path("task.py"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a commented task file that works as it stands, to put your own network into.

    \b
    enxuto init                    writes task.py
    enxuto init nets/mine.py
    """
    from enxuto.errors import OutputError
    from enxuto.files import write_bytes

    with session(json=json, quiet=quiet, debug=debug) as run:
        if path.suffix != ".py":
            raise OutputError(f"'{path}' does not end in .py; a task file is a Python file: write `enxuto init task.py`.")
        if path.exists() and not force:
            raise OutputError(f"'{path}' is there already and was left alone; choose another name, or replace it with --force.")
        shown = shlex.quote(str(path))
        text = TEMPLATE.read_text(encoding="utf-8").replace("task.py", shown)
        write_bytes(path, text.encode())
        run.answer({"task": str(path)})
        run.show(f"wrote {path}; put your network in, or try it as it is:")
        run.show(f"    enxuto compress {shown} --size 12kB --max-drop 1% --time 1m --out out/")
