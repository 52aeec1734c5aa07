"""A document as tables for the terminal. Each function returns a rich table; printing is the command line's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from enxuto.report import summary, words
from enxuto.report.document import Document, LayerChange
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
    """The original beside the compressed network: every measure that was taken, and what became of it."""
    table = _table(words.printable(document.name) or "result", ["", "original", "compressed", "change"], left=1)
    for row in summary.summary_rows(document):
        cells = [row.original, row.compressed, row.change]
        shown = [f"{cell.text}\n{cell.detail}" if cell.detail else cell.text for cell in cells]
        table.add_row(*_texts(row.measure, *shown))
    return table


def steps_table(document: Document) -> Table:
    """What each step did to each layer and why; layers left alone are dimmed."""
    table = _table("what each step did", ["step", "layer", "what", "why"], left=4)
    for record in document.records:
        table.add_section()
        rows: list[tuple[LayerChange, str]] = [(change, "") for change in record.changes]
        rows += [(change, "dim") for change in record.skipped]
        took = f"{record.step} ({words.seconds(record.seconds)})"
        if not rows:
            table.add_row(*_texts(took, "", "no layer named", ""))
        for index, (change, style) in enumerate(rows):
            path = summary.layer_word(change.path, ())
            what = f"left alone: {change.what}" if style else change.what
            table.add_row(*_texts("" if index else took, path, what, change.why), style=style)
    return table


def ledger_table(document: Document) -> Table:
    """Every byte of the compressed file by layer and kind, with totals, beside the bytes of the original."""
    kinds = summary.ledger_kinds(document)
    table = _table("where the bytes are", ["layer", "before", *kinds, "after", "change"], left=1)
    layers = summary.layer_bytes(document)
    for layer in layers:
        before = words.MISSING if layer.before is None else words.count(layer.before)
        parts = [words.count(layer.kinds.get(kind, 0)) for kind in kinds]
        change = words.times(layer.before, layer.after, "smaller", "larger")
        name = summary.layer_word(layer.path, list(layer.kinds))
        table.add_row(*_texts(name, before, *parts, words.count(layer.after), change))
    table.add_section()
    totals = [words.count(sum(layer.kinds.get(kind, 0) for layer in layers)) for kind in kinds]
    before_total = sum(layer.before or 0 for layer in layers)
    after_total = sum(layer.after for layer in layers)
    change = words.times(before_total, after_total, "smaller", "larger")
    table.add_row(*_texts("bytes", words.count(before_total), *totals, words.count(after_total), change), style="bold")
    gap = summary.ledger_gap(document)
    if gap:
        table.caption = gap
    return table


def exports_table(document: Document) -> Table:
    """Every exported file: bytes, quality, latency, memory, and how many operators compute in integers."""
    columns = ["export", "file", "quality", "change", "latency", "peak memory", "integer / float operators"]
    table = _table("exports", columns, left=1)
    for index, export in enumerate(document.exports):
        bounds = words.interval(export.quality_change_interval, document.is_fraction)
        change = words.change(export.quality_change, document.is_fraction)
        spread = words.spread(export.latency_samples_ms)
        latency = words.milliseconds(export.latency_ms)
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
    totals = [sum(layer.file_bytes for layer in layers)]
    totals += [sum(layer.macs or 0 for layer in layers), sum(layer.latency_ms or 0 for layer in layers)]
    for layer in layers:
        cells = [words.count(layer.parameters), words.count(layer.file_bytes), _share(layer.file_bytes, totals[0])]
        if has_macs:
            cells += [words.large(layer.macs), _share(layer.macs, totals[1])]
        if has_time:
            cells += [words.milliseconds(layer.latency_ms), _share(layer.latency_ms, totals[2])]
        table.add_row(*_texts(summary.layer_word(layer.path, ()), layer.kind, *cells))
    table.add_section()
    cells = [words.count(sum(layer.parameters for layer in layers)), words.count(int(totals[0])), ""]
    cells += [words.large(int(totals[1])), ""] * has_macs + [words.milliseconds(totals[2]), ""] * has_time
    table.add_row(*_texts("all", "", *cells), style="bold")
    return table


def _share(part: float | None, whole: float) -> str:
    return words.MISSING if part is None or not whole else words.percent(part / whole, 1)


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first `left` columns hold words and the others numbers."""
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        justify = "left" if index < left else "right"
        table.add_column(Text(column), justify=justify, no_wrap=False, overflow="fold")
    return table


def _texts(*cells: str) -> list[Text]:
    """Cells as plain text: a layer's name is never read as markup, nor by the terminal."""
    return [Text("\n".join(words.printable(line) for line in cell.split("\n"))) for cell in cells]
