"""`enxuto pack` and `enxuto unpack`: any file with tensors as a .nxt file, and back, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enxuto.cli.options import Debug, Json, Quiet
from enxuto.cli.terminal import session

Parent = Annotated[
    Path | None,
    typer.Option("--parent", "--delta", metavar="FILE", help="A checkpoint that this one is close to.", show_default=False),
]


def pack(
    file: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors, .pt or .onnx file.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="NXT", help="The file to write.", show_default=False)] = None,
    parent: Parent = None,
    fast: Annotated[bool, typer.Option("--fast", help="Only coders that are read at hundreds of MB/s.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as a .nxt file, without loss: `unpack` gives the same bytes back.

    \b
    enxuto pack model.safetensors -o model.nxt
    enxuto pack tuned.safetensors -o tuned.nxt --delta base.safetensors
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.artifact.pack import pack as write
        from enxuto.sizes import file_bytes, format_bytes

        path = out or _free(file.parent / f"{file.stem}.nxt")
        with run.progress():
            ledger = write(file, path, parent=parent, fast=fast)
        before, after = file_bytes(file), file_bytes(path)
        run.answer({"file": str(path), "file_bytes": after, "original_bytes": before, "ratio": after / before, "tensors": ledger})
        run.show(f"{path}  {format_bytes(after)}, {after / before:.1%} of {format_bytes(before)}")


def unpack(
    file: Annotated[Path, typer.Argument(metavar="IN.NXT", help="A file that `enxuto pack` wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file to write; else its old name.", show_default=False)
    ] = None,
    parent: Parent = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the file that was packed, byte for byte.

    \b
    enxuto unpack model.nxt -o model.safetensors
    enxuto unpack tuned.nxt -o tuned.safetensors --parent base.safetensors
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.artifact.container import Reader
        from enxuto.artifact.pack import unpack as write
        from enxuto.sizes import format_bytes

        path = out
        if path is None:
            with Reader(file) as reader:
                name = Path(str(reader.meta.get("name", ""))).name or f"{file.stem}.unpacked"
            path = _free(file.with_name(name))
        with run.progress():
            size = write(file, path, parent=parent)
        run.answer({"file": str(path), "file_bytes": size})
        run.show(f"{path}  {format_bytes(size)}")


def _free(path: Path) -> Path:
    """The path that nobody named, when nothing is there.

    Raises: OutputError when something is.
    """
    from enxuto.errors import OutputError

    if path.exists():
        raise OutputError(f"'{path}' is there already and was left alone; name the file to write with -o.")
    return path
