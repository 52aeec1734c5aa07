"""What `compress` and `demo` share: run, write the folder, show the result, and end with the exit code of the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from rich.text import Text

from enxuto.cli.terminal import GOAL_MISSED, Session
from enxuto.files import writable_folder
from enxuto.losses import newest_sensitivity
from enxuto.reports import Document, summary_table, write_html
from enxuto.reports.ship import sentences, use
from enxuto.reports.summary import certainty, notes
from enxuto.sizes import file_bytes, format_bytes
from enxuto.task import Step, Target, Task

BESIDE = {
    "report.html": "what was done to each layer and why; opens offline",
    "result.json": "every number, for scripts",
}
MOST_NOTES = 6  # the last ones: what was measured comes after what the exporters had to say


def compress_into(
    run: Session,
    load: Callable[[], Task],
    out: Path,
    *,
    steps: Sequence[Step] | None = None,
    target: Target | None = None,
    seconds: float | None = None,
    memory: str | None = None,
) -> None:
    """Compresses what `load` gives into the folder and shows the result; the folder is tried before `load` is called.

    Raises: typer.Exit with GOAL_MISSED when a goal was missed; the files are written then too.
    """
    from enxuto import world
    from enxuto.compression import compress

    folder = writable_folder(out)
    with run.progress():
        task = load()
        run.kept = f"steps that were finished are in '{folder}', and the same command goes on from there"
        result = compress(task, steps=steps, target=target, time=seconds, out=folder, memory=memory)
        plain = result.document()
        document = Document.from_json(plain)
        if not world.rank():
            write_html(document, folder / "report.html", newest_sensitivity(folder))
        run.kept = f"the result is in '{folder}'"
    about = {file.name: use(document, file) for file in document.files} | BESIDE
    files = {name: folder / name for name in about if (folder / name).is_file()}
    run.answer(plain | {"files": {name: str(path) for name, path in files.items()}})
    run.show(summary_table(document), *sentences(document))
    _show_verdict(run, document)
    if not run.quiet:
        run.show(Text(certainty(document), style="dim"))
        told = notes(document)
        run.show(*(Text(f"note: {note}", style="yellow") for note in told[-MOST_NOTES:]))
        if len(told) > MOST_NOTES:
            run.show(f"and {len(told) - MOST_NOTES} more notes, in report.html")
        run.show("", *(_file_line(path, about[name]) for name, path in files.items()))
    if not result.met:
        raise typer.Exit(GOAL_MISSED)


def _show_verdict(run: Session, document: Document) -> None:
    for line in document.verdict:
        run.show(Text(line, style="red" if line.endswith("missed") else "green"))
    run.show(*(Text(line, style="yellow") for line in document.advice))


def _file_line(path: Path, what: str) -> str:
    return f"{path}  {format_bytes(file_bytes(path))}  {what}"
