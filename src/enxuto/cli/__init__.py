"""The command line: `enxuto init | inspect | compress | evaluate | compare | export | pack | unpack | memory | report | demo`.

Importing it loads no torch, so that `--help` answers at once: what is heavy is imported inside the commands.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from enxuto.extras import explained

with explained("the enxuto command"):
    import typer

    from enxuto.cli import compress, demo, evaluate, export, init, inspect, memory, pack, terminal

HELP = """Makes trained PyTorch networks physically smaller and faster, and proves it.

\b
enxuto demo                                           see it work, on real data
enxuto init task.py                                   a task file to fill in
enxuto compress task.py --size 100kB --max-drop 0.5%  a goal in one sentence

Exit codes: 0 done, goal met; 3 goal missed, files written; 2 bad input; 1 unexpected error; 130 Ctrl-C.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("inspect")(inspect.inspect)
app.command("compress")(compress.compress)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("export")(export.export)
app.command("pack")(pack.pack)
app.command("unpack")(pack.unpack)
app.command("memory")(memory.memory)
app.command("report")(export.report)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"enxuto {version('enxuto')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What comes before the command's name."""


def main() -> None:
    """The entry point of the `enxuto` command."""
    # Threads that wait sleep instead of spinning: on a busy machine spinning took 585 ms a batch, not 77.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    terminal.open_streams()
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, the first of several processes speaks for all
    app(prog_name="enxuto")


__all__ = ["app", "main"]
