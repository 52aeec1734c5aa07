"""`enxuto export` and `enxuto report`: from a .nxt file to what a runtime takes, from a result to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enxuto.cli.options import Debug, Json, Quiet, Seed, TaskFile
from enxuto.cli.terminal import session
from enxuto.exporters import Precision


def export(
    task_file: TaskFile,
    file: Annotated[Path, typer.Argument(metavar="SMALL.NXT", help="The compressed network.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="ONNX",
            help="The file to write; otherwise named like the .nxt file.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="int8: on integers; int8-dynamic: their ranges at each call; int4: matrices of 4 bits."),
    ] = "fp32",
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a compressed network as an .onnx file, run in ONNX Runtime and compared with torch before it counts.

    \b
    enxuto export task.py out/small.nxt -o small.onnx
    enxuto export task.py out/small.nxt -o small.int8.onnx --precision int8
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.artifact.save import ledger, load
        from enxuto.cli.taskfile import load_task
        from enxuto.errors import ArtifactError, OutputError
        from enxuto.exporters import export as to_file
        from enxuto.files import writable_folder
        from enxuto.sizes import file_bytes, format_bytes

        path = out or file.with_suffix(".onnx" if precision == "fp32" else f".{precision}.onnx")
        if path.suffix != ".onnx":
            raise OutputError(f"'{path}' does not end in .onnx; write -o {path.with_suffix('.onnx')}.")
        if not file.is_file():
            raise ArtifactError(f"'{file}' does not exist; name a .nxt file that `enxuto compress` wrote.")
        ledger(file)  # a damaged file is found before the task file trains anything
        writable_folder(path.parent)
        with run.progress():
            task = load_task(task_file, seed)
            model = load(file, into=task.model)
            written = to_file(model, path, calibration=task.calibration, precision=precision)
        size = file_bytes(path)
        run.answer(
            {
                "file": str(path),
                "file_bytes": size,
                "precision": written.precision,
                "dynamic_batch": written.dynamic_batch,
                "notes": written.notes,
            }
        )
        run.show(f"{path}  {format_bytes(size)}  {written.precision}, checked in ONNX Runtime")
        for note in written.notes:
            run.remark(f"note: {note}")


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="OUT_DIR", help="A folder with a result.json, or the file itself.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="HTML", help="The page to write; otherwise beside result.json.", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the page of a result: one HTML file that opens offline.

    \b
    enxuto report out/
    enxuto report out/ -o /tmp/lenet.html
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.losses import newest_sensitivity
        from enxuto.reports import read_document, steps_table, summary_table, write_html
        from enxuto.sizes import file_bytes, format_bytes

        document = read_document(folder)
        path = out or (folder if folder.is_dir() else folder.parent) / "report.html"
        write_html(document, path, newest_sensitivity(folder))
        run.answer({"file": str(path), "file_bytes": file_bytes(path)})
        if not quiet:
            run.show(summary_table(document), steps_table(document))
        run.show(f"{path}  {format_bytes(file_bytes(path))}")
