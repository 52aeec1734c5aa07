"""`enxuto evaluate` and `enxuto compare`: two networks beside each other, measured on their files."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enxuto.cli.options import Debug, Json, Quiet, Seed, TaskFile
from enxuto.cli.terminal import Session, session

if TYPE_CHECKING:
    from rich.table import Table

    from enxuto.reports import Document
    from enxuto.reports.document import Measured, Shipped

FILE_HELP = "A .nxt file, an .onnx file, or a folder that `enxuto compress` wrote."


def evaluate(
    task_file: TaskFile,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help=FILE_HELP, show_default=False)] = None,
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure quality, size, latency and memory of the original, and of a file beside it.

    \b
    enxuto evaluate task.py                  the original alone
    enxuto evaluate task.py out/small.nxt    both, with the paired difference
    enxuto evaluate task.py out/small.onnx

    Quality is the task's test if it has one, else its evaluate, else agreement with the original. The file is opened
    in a fresh process; both are timed in one interleaved run.
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.cli.subjects import Subject, measure, subject
        from enxuto.cli.taskfile import load_task
        from enxuto.evaluation.environment import environment

        subjects = [Subject("original")] + ([subject(file)] if file else [])
        with run.progress():
            task = load_task(task_file, seed)
            found = measure(task, subjects)
        names = ["original", "compressed"][: len(subjects)]
        run.answer(found.data(*names) | {"seed": task.seed, "environment": environment()})
        heads = ["original", str(file), "change"] if file else ["original"]
        run.show(_table(found.document(), f"{task_file}", heads))
        _show_notes(run, found.document())


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help=FILE_HELP, show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same for the other one.", show_default=False)],
    task_file: Annotated[
        Path | None,
        typer.Option("--task", metavar="TASK.PY", help="Measure both now, with this task's functions.", show_default=False),
    ] = None,
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show two results beside each other, and what is different from A to B.

    \b
    enxuto compare out1/ out2/                            the numbers in their result.json
    enxuto compare out1/small.nxt out2/small.nxt          bytes, by layer
    enxuto compare out1/ out2/small.onnx --task task.py   measured now: paired quality, interleaved latency
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.cli.subjects import measure, subject
        from enxuto.cli.taskfile import load_task

        subjects = [subject(first), subject(second)]
        if task_file is not None:
            with run.progress():
                found = measure(load_task(task_file, seed), subjects)
            document, exports, data = found.document(), None, found.data("a", "b")
        else:
            document, exports = _from_files(first, second)
            data = {
                "a": asdict(document.original),
                "b": asdict(document.compressed),
                "quality_change": document.change,
                "quality_change_interval": None,
                "compression": document.compression,
                "notes": document.notes,
                "exports": None if exports is None else {"a": asdict(exports.original), "b": asdict(exports.compressed)},
            }
        run.answer({"files": {"a": str(first), "b": str(second)}} | data)
        run.show(_table(document, "A beside B", [*(one.name for one in subjects), "from A to B"]))
        if exports is not None:
            run.show(_table(exports, "their small.onnx", [str(first / "small.onnx"), str(second / "small.onnx"), "from A to B"]))
        if document.ledger and document.before_ledger:
            from enxuto.reports import ledger_table

            run.show(ledger_table(document))
        _show_notes(run, document)


def _from_files(first: Path, second: Path) -> tuple[Document, Document | None]:
    """What is known of both without measuring: the result.json of a folder, the bytes of a file, by layer for .nxt.

    Of folders, small.nxt beside small.nxt, and small.onnx beside small.onnx where both have one.
    """
    from enxuto.artifact.save import ledger
    from enxuto.reports import Document, read_document
    from enxuto.reports.document import Entry, Measured
    from enxuto.sizes import file_bytes

    measured, exported, ledgers, names = [], [], [], set()
    for path in (first, second):
        if path.is_dir():
            document = read_document(path)
            artifact, *others = (_measured(file) for file in document.files)
            measured.append(replace(artifact, parameters=document.compressed.parameters, macs=document.compressed.macs))
            exported += others[:1]
            ledgers.append(document.ledger)
            names.add(document.quality_name)
        else:
            measured.append(Measured(file_bytes=file_bytes(path)))
            entries = ledger(path) if path.suffix == ".nxt" else ()
            ledgers.append(tuple(Entry(**asdict(entry)) for entry in entries))
    notes = ["nothing was measured now, so there is no latency; with --task task.py both are, in one run, and quality is paired."]
    if len(names) > 1:
        notes.append(f"the qualities are of different kinds ({' and '.join(sorted(names))}): their difference means nothing.")
    name = names.pop() if len(names) == 1 else "quality"
    exports = Document(original=exported[0], compressed=exported[1], quality_name=name) if len(exported) == 2 else None
    return (
        Document(
            original=measured[0],
            compressed=measured[1],
            quality_name=name,
            before_ledger=ledgers[0],
            ledger=ledgers[1],
            notes=tuple(notes),
        ),
        exports,
    )


def _measured(file: Shipped) -> Measured:
    """A file of a result as one side of a pair, without its clock: two runs on two machines, or an hour apart, say nothing."""
    from enxuto.reports.document import Measured

    return Measured(
        file_bytes=file.file_bytes, quality=file.quality, peak_memory_bytes=file.peak_memory_bytes, precision=file.precision
    )


def _table(document: Document, title: str, heads: list[str]) -> Table:
    """The rows of a summary under the given heads: original, compressed and change, or the first alone."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from enxuto.reports.summary import pair_rows

    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left")
    for index, head in enumerate(["", *heads]):
        table.add_column(Text(head), justify="right" if index else "left", overflow="fold")
    for row in pair_rows(document):
        cells = [row.original, row.compressed, row.change][: len(heads)]
        table.add_row(row.measure, *(Text("\n".join(part for part in (cell.text, cell.detail) if part)) for cell in cells))
    return table


def _show_notes(run: Session, document: Any) -> None:
    for note in document.notes:
        run.remark(f"note: {note}")
