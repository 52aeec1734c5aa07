"""`enxuto inspect`: where the bytes, the multiply-accumulates and the time of a network or of its file are."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enxuto.cli.options import Debug, Json, Quiet, Seed
from enxuto.cli.sensitivity import inspect_sensitivity
from enxuto.cli.terminal import Session, session

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A task file (.py), a .nxt or an .onnx file.", show_default=False)],
    coders: Annotated[bool, typer.Option("--coders", help="Of a .nxt file: each tensor under every coder.")] = False,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Of a task: what each layer loses by each change.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="With --sensitivity: where it is kept and found again.", show_default=False
        ),
    ] = None,
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where the bytes, MACs and time are, layer by layer.

    \b
    enxuto inspect task.py           bytes, parameters, zeros, MACs and time of each layer
    enxuto inspect task.py --sensitivity   what the outputs lose when one layer alone gets fewer bits, zeros or thin layers
    enxuto inspect out/small.nxt     every byte of the file, by layer and kind; --coders: by coder
    enxuto inspect out/small.onnx    constants by type, operators, and which run on integers
    """
    from enxuto.errors import ArtifactError

    with session(json=json, quiet=quiet, debug=debug) as run:
        if coders and path.suffix != ".nxt":
            raise ArtifactError(f"'{path}' has no coders to show; give --coders with a .nxt file.")
        if out is not None and not sensitivity:
            raise ArtifactError(f"--out '{out}' is where a sensitivity is kept; give --sensitivity with it.")
        if sensitivity:
            inspect_sensitivity(run, path, seed, out)
        elif path.suffix == ".nxt":
            (_inspect_coders if coders else _inspect_nxt)(run, path)
        elif path.suffix == ".onnx":
            _inspect_onnx(run, path)
        elif path.suffix == ".py":
            _inspect_task(run, path, seed)
        else:
            raise ArtifactError(f"'{path}' is not inspected by its name; give a task file (.py), a .nxt or an .onnx file.")


def _inspect_task(run: Session, path: Path, seed: int | None) -> None:
    from enxuto.batches import batch_size
    from enxuto.cli.costs import OTHER, layer_costs
    from enxuto.cli.taskfile import load_task
    from enxuto.reports import LayerCost, layers_table

    with run.progress():
        task = load_task(path, seed)
    costs = layer_costs(task.model, task.sample)
    samples = batch_size(task.sample)
    run.answer(
        {
            "file": str(path),
            "model": type(task.model).__name__,
            "batch": samples,
            "bytes": sum(cost.bytes for cost in costs),
            "parameters": sum(cost.parameters for cost in costs),
            "macs": sum(cost.macs for cost in costs),
            "time_ms": sum(cost.time_ms or 0.0 for cost in costs),
            "layers": [asdict(cost) for cost in costs],
        }
    )
    rows = [
        LayerCost(
            path=cost.path,
            kind=f"{cost.kind}, {cost.sparsity:.0%} zeros" if cost.sparsity >= 0.005 else cost.kind,
            parameters=cost.parameters,
            file_bytes=cost.bytes,
            macs=cost.macs if cost.path != OTHER else None,
            latency_ms=cost.time_ms,
        )
        for cost in costs
    ]
    run.show(layers_table(rows, f"{type(task.model).__name__}: bytes in memory, MACs a sample, time of {samples} samples"))


def _inspect_nxt(run: Session, path: Path) -> None:
    from enxuto.artifact.save import about, ledger
    from enxuto.reports.summary import KINDS
    from enxuto.sizes import file_bytes, format_bytes

    entries, said = ledger(path), about(path)
    layers: dict[str, Counter[str]] = {}
    for entry in entries:
        layers.setdefault(entry.path, Counter())[entry.kind] += entry.bytes
    kinds: Counter[str] = sum(layers.values(), Counter())
    shown = [kind for kind in KINDS if kind in kinds] + [kind for kind in kinds if kind not in KINDS]
    total = file_bytes(path)
    run.answer(
        {
            "file": str(path),
            "file_bytes": total,
            "kinds": dict(kinds),
            "layers": [{"path": name, "bytes": found.total(), "kinds": dict(found)} for name, found in layers.items()],
            "entries": [asdict(entry) for entry in entries],
            "about": said,
        }
    )
    table = _table(["layer", *shown, "bytes", "share"])
    for name, found in layers.items():
        word = name or ("(header)" if set(found) == {"header"} else "(model)")
        _add(
            table,
            word,
            *(f"{found[kind]:,}" if found[kind] else "–" for kind in shown),
            f"{found.total():,}",
            _share(found.total(), total),
        )
    table.add_section()
    _add(table, "all", *(f"{kinds[kind]:,}" for kind in shown), f"{kinds.total():,}", "", style="bold")
    run.show(_title(f"{path}: {format_bytes(total)} ({total:,} bytes)"), *(f"{key}: {text}" for key, text in said.items()), table)


def _inspect_coders(run: Session, path: Path) -> None:
    """Each tensor: its method, and the bytes that it would take under every method."""
    from enxuto.artifact.container import Reader
    from enxuto.artifact.spans import REST
    from enxuto.coding.arrays import Matches, array_costs
    from enxuto.coding.integers import costs, entropy_bytes
    from enxuto.coding.stream import METHODS
    from enxuto.progress import counted
    from enxuto.sizes import format_bytes

    rows: list[dict[str, Any]] = []
    with Reader(path) as reader, run.progress():
        for entry in counted(reader.entries.values(), "coding", len(reader.entries)):
            parts = [part.reshape(shape) for part, (*_, shape) in zip(reader.pieces(entry.name), entry.pieces(), strict=True)]
            matches: Matches = "packed" in reader.meta and ("always" if entry.name == REST else True)
            each = [costs(part, entry.symbols) if entry.symbols else array_costs(part, matches=matches) for part in parts]
            shared = [name for name in METHODS if each and all(name in found for found in each)]
            rows.append(
                {
                    "tensor": entry.name,
                    "elements": entry.count,
                    "used": reader.methods(entry),
                    "shared": entry.shelf > 0,
                    "used_bytes": reader.bytes_of(entry),
                    "entropy": sum(entropy_bytes(part, entry.symbols) for part in parts) if entry.symbols else None,
                    "bytes": {name: sum(found[name] for found in each) for name in shared},
                }
            )
    run.answer({"file": str(path), "tensors": rows})
    shown = [name for name in METHODS if any(name in row["bytes"] for row in rows)]
    table = _table(["tensor", "elements", "used", "entropy", *shown])
    for row in rows:
        bound = "–" if row["entropy"] is None else f"{row['entropy']:,.0f}"
        costs_ = (f"{row['bytes'][name]:,}" if name in row["bytes"] else "–" for name in shown)
        used = row["used"] + ", shared" * row["shared"]
        _add(table, row["tensor"], f"{row['elements']:,}", used, bound, *costs_)
    run.show(_title(f"{path}: {format_bytes(reader.size)}, bytes of each tensor under each coder"), table)


def _inspect_onnx(run: Session, path: Path) -> None:
    import math

    import onnx
    from google.protobuf.message import DecodeError

    from enxuto.errors import ExportError
    from enxuto.evaluation.operators import integer_operators
    from enxuto.sizes import file_bytes, format_bytes

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise ExportError(f"'{path}' cannot be read as ONNX: {error}; name a file that `enxuto export` wrote.") from error
    constants: dict[str, list[int]] = {}
    for item in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(item.data_type).lower()
        row = constants.setdefault(kind, [0, 0, 0])
        bits = 4 if kind in ("int4", "uint4") else 8 * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
        row[0], row[1] = row[0] + 1, row[1] + math.prod(item.dims)
        row[2] += math.ceil(math.prod(item.dims) * bits / 8)
    optimised = integer_operators(path)
    operators = Counter(node.op_type for node in graph.node)
    total = file_bytes(path)
    run.answer(
        {
            "file": str(path),
            "file_bytes": total,
            "constants": {kind: dict(zip(("tensors", "values", "bytes"), row, strict=True)) for kind, row in constants.items()},
            "operators": dict(operators),
            "integer_operators": dict(optimised.integer),
            "float_operators": dict(optimised.floating),
        }
    )
    table = _table(["constants", "tensors", "values", "bytes", "share"])
    for kind, row in sorted(constants.items(), key=lambda pair: -pair[1][2]):
        _add(table, kind, *(f"{value:,}" for value in row), _share(row[2], total))
    rest = total - sum(row[2] for row in constants.values())
    _add(table, "the graph itself", "–", "–", f"{rest:,}", _share(rest, total))
    nodes = _table(["operator", "in the file", "optimised, integer", "optimised, float"])
    for kind in dict.fromkeys([*operators, *optimised.integer, *optimised.floating]):
        _add(
            nodes,
            kind,
            *(f"{found[kind]}" if found[kind] else "–" for found in (operators, optimised.integer, optimised.floating)),
        )
    nodes.add_section()
    _add(
        nodes,
        "all",
        *(str(found.total()) for found in (operators, optimised.integer, optimised.floating)),
        style="bold",
    )
    run.show(_title(f"{path}: {format_bytes(total)} ({total:,} bytes)"), table, _title("operators"), nodes)


def _title(text: str) -> Text:
    """A line above a table: unlike the table's own title it never wraps, however narrow the table."""
    from rich.text import Text

    return Text(text, style="bold")


def _table(columns: list[str]) -> Table:
    """An empty table in the style of the report's: names to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    return table


def _add(table: Table, *cells: Any, style: str = "") -> None:
    from rich.text import Text

    from enxuto.reports.words import printable

    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"
