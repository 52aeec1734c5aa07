"""A document as tables for the terminal. Each function returns a rich table; printing is the command line's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from enxuto.reports import ship, summary, words
from enxuto.reports.document import Document, LayerChange, MemoryUse
from enxuto.sizes import format_bytes


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Where one layer's bytes, MACs and time are; None where it was not measured."""

    path: str
    kind: str
    parameters: int
    file_bytes: int
    macs: int | None = None
    latency_ms: float | None = None


def summary_table(document: Document) -> Table:
    """The original beside each file there is to ship: every measure that was taken, and what became of it."""
    table = _table(words.printable(document.name) or "result", ["", *ship.heads(document)], left=1)
    for row in ship.file_rows(document):
        table.add_row(*_texts(row.measure, *(f"{cell.text}\n{cell.detail}" if cell.detail else cell.text for cell in row.cells)))
    return table


def steps_table(document: Document) -> Table:
    """What each step did to each layer and why; layers with the same story share a row, those left alone are dimmed."""
    table = _table("what each step did", ["step", "layers", "what", "why"], left=4)
    for record in document.records:
        table.add_section()
        stories = [*_stories(record.changes, ""), *_stories(record.skipped, "dim")]
        step = f"{record.step}\n{words.seconds(record.seconds)}"
        for index, (paths, what, why, style) in enumerate(stories or [("", "no layer changed by name", "", "dim")]):
            table.add_row(*_texts("" if index else step, paths, what, why), style=style)
    return table


def _stories(changes: Sequence[LayerChange], style: str) -> list[tuple[str, str, str, str]]:
    """Rows of paths, what, why and style; changes with the same words are one row."""
    together: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        together.setdefault((change.what, change.why), []).append(summary.layer_word(change.path))
    rows = []
    for (what, why), paths in together.items():
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        rows.append((", ".join(paths[:3]) + more, f"left alone: {what}" if style else what, why, style))
    return rows


def ledger_table(document: Document) -> Table:
    """Every byte of the compressed file by layer and kind, with totals, beside the bytes of the original."""
    kinds = summary.ledger_kinds(document)
    table = _table("where the bytes are", ["layer", "before", *map(summary.kind_word, kinds), "after", "change"], left=1)
    for layer in summary.layer_bytes(document):
        table.add_row(*_texts(layer.path, *_byte_cells(layer, kinds)))
    table.add_section()
    table.add_row(*_texts("all", *_byte_cells(summary.all_layers(document), kinds)), style="bold")
    gap = summary.ledger_gap(document)
    if gap:
        table.caption = gap
    return table


def _byte_cells(layer: summary.LayerBytes, kinds: Sequence[str]) -> list[str]:
    parts = [words.count(layer.kinds.get(kind)) for kind in kinds]
    change = words.times(layer.before, layer.after, "smaller", "larger")
    return [words.count(layer.before), *parts, words.count(layer.after), change]


def exports_table(document: Document) -> Table:
    """Every exported file: bytes, quality, latency, memory, and how many operators compute in integers."""
    columns = ["export", "file", "quality", "change", "latency", "peak memory", "integer / float operators"]
    table = _table("exports", columns, left=1)
    slowest = summary.slowest_ms(document)
    for index, export in enumerate(document.exports):
        bounds = words.interval(export.quality_change_interval, document.is_fraction)
        change = words.change(export.quality_change, document.is_fraction)
        spread = words.spread(export.latency_samples_ms, slowest)
        latency = words.milliseconds(export.latency_ms, slowest)
        memory = export.peak_memory_bytes
        table.add_row(
            *_texts(
                summary.exported_name(document, index),
                format_bytes(export.file_bytes),
                words.quality(export.quality, document.is_fraction),
                f"{change}\n{bounds}" if bounds else change,
                f"{latency}\n{spread}" if spread else latency,
                words.MISSING if memory is None else format_bytes(memory),
                f"{words.count(export.integer_operators)} / {words.count(export.float_operators)}",
            ),
            style="bold" if summary.is_chosen(document, index) else "",
        )
    return table


def layers_table(layers: Sequence[LayerCost], title: str = "where the bytes, MACs and time are") -> Table:
    """A network layer by layer, with shares of the whole; a measure that no layer has is left out."""
    has_macs = any(layer.macs is not None for layer in layers)
    has_time = any(layer.latency_ms is not None for layer in layers)
    columns = ["layer", "kind", "parameters", "bytes", "share"]
    columns += ["MACs", "share"] * has_macs + ["time", "share"] * has_time
    table = _table(title, columns, left=2)
    totals: list[float] = [sum(layer.file_bytes for layer in layers)]
    totals += [sum(layer.macs or 0 for layer in layers), sum(layer.latency_ms or 0 for layer in layers)]
    for layer in layers:
        cells = [words.count(layer.parameters), words.count(layer.file_bytes), _share(layer.file_bytes, totals[0])]
        if has_macs:
            cells += [words.large(layer.macs), _share(layer.macs, totals[1])]
        if has_time:
            cells += [words.milliseconds(layer.latency_ms), _share(layer.latency_ms, totals[2])]
        table.add_row(*_texts(summary.layer_word(layer.path), layer.kind, *cells))
    table.add_section()
    cells = [words.count(sum(layer.parameters for layer in layers)), words.count(int(totals[0])), ""]
    cells += [words.large(int(totals[1])), ""] * has_macs + [words.milliseconds(totals[2]), ""] * has_time
    table.add_row(*_texts("all", "", *cells), style="bold")
    return table


def memory_table(uses: Sequence[MemoryUse], title: str = "memory at the fullest moment") -> Table:
    """Bytes of each category at the fullest moment, a column for each run and network."""
    columns = [(use, name, run) for use in uses for name, run in zip(use.names, (use.before, use.after), strict=True) if run]
    several = any(use.after for use in uses)
    parts = [(use.what, *([name] if several else []), f"batch {use.batch}") for use, name, _ in columns]
    heads = ["\n".join(part) for part in parts]
    table = _table(title, ["", *heads], left=1)
    for category in dict.fromkeys(category for *_, run in columns for category in run.bytes):
        found = [run.by_category.get(category, 0) for *_, run in columns]
        if any(found):
            table.add_row(*_texts(category, *(format_bytes(size) if size else words.MISSING for size in found)))
    table.add_section()
    table.add_row(*_texts("all", *(format_bytes(run.peak_bytes) for *_, run in columns)), style="bold")
    return table


def memory_layers_table(use: MemoryUse, most: int) -> Table:
    """The layers that hold most at the fullest moment of a run, by category; of the second network where there are two."""
    run = use.after or use.before
    layers: dict[str, dict[str, int]] = {}
    for path, category, size in run.layers if run else ():
        layers.setdefault(path, {})[category] = size
    shown = list(layers.items())[:most]
    kinds = [kind for kind in (run.bytes if run else ()) if any(kind in parts for _, parts in shown)]
    table = _table(f"{words.printable(use.what)}: the layers that hold most then", ["layer", *kinds, "all", "share"], left=1)
    whole = run.peak_bytes if run else 0
    for path, parts in shown:
        cells = [format_bytes(parts[kind]) if kind in parts else words.MISSING for kind in kinds]
        total = sum(parts.values())
        table.add_row(*_texts(summary.layer_word(path), *cells, format_bytes(total), _share(total, whole)))
    if len(layers) > most:
        rest = sum(sum(parts.values()) for parts in layers.values()) - sum(sum(parts.values()) for _, parts in shown)
        cells = [""] * len(kinds)
        table.add_row(*_texts(f"{len(layers) - most} others", *cells, format_bytes(rest), _share(rest, whole)), style="dim")
    return table


def plain_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    """Words in rows; the first `left` columns are set to the left."""
    table = _table(title, list(heads), left=left)
    for row in rows:
        table.add_row(*_texts(*row))
    return table


def _share(part: float | None, whole: float) -> str:
    return words.MISSING if part is None or not whole else words.percent(part / whole, 1)


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first `left` columns hold words and the others numbers."""
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index < left else "right", overflow="fold")
    return table


def _texts(*cells: str) -> list[Text]:
    """Cells as plain text: a layer's name is never read as markup, nor by the terminal."""
    return [Text("\n".join(words.printable(line) for line in cell.split("\n"))) for cell in cells]
