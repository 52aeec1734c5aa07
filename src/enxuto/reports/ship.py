"""Which file to ship for what: a sentence and a column for each file, all of it measured on that very file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from enxuto.reports import words
from enxuto.reports.document import Document, Shipped
from enxuto.reports.summary import Cell, clearly_apart, quality_word, slowest_ms
from enxuto.sizes import format_bytes

OPENS = {
    ".nxt": "Python opens it with enxuto.load; saved with graph=True it runs without torch, by enxuto.runtime.open",
    ".onnx": "ONNX Runtime opens it on any device, without enxuto",
}


@dataclass(frozen=True)
class FileRow:
    """One measure of the original and of every file; `shares` are the lengths of the bars, in [0, 1], None for no bar."""

    measure: str
    cells: tuple[Cell, ...]
    shares: tuple[float | None, ...] = ()


def title(file: Shipped) -> str:
    """The name of a file, and its precision where it has one."""
    return words.printable(f"{file.name} ({file.precision})" if file.precision else file.name)


def use(document: Document, file: Shipped) -> str:
    """What a file is good for, beside the others, and how it is opened."""
    good = []
    if len(document.files) == 1:
        good.append("the only one")
    elif file.file_bytes == min(other.file_bytes for other in document.files):
        good.append("the smallest")
    if _speed(document, file) == "faster":
        good.append("the fastest")
    kind = next((opens for suffix, opens in OPENS.items() if file.name.endswith(suffix)), "")
    return "; ".join([*([" and ".join(good)] if good else []), *([kind] if kind else [])])


def sentence(document: Document, file: Shipped) -> str:
    """What one file costs and gives, beside the original; every figure is its own."""
    before = document.original
    ratio = before.file_bytes / file.file_bytes
    said = f"{title(file)}: {format_bytes(before.file_bytes)} became {format_bytes(file.file_bytes)}"
    little = "hardly smaller" if ratio > 1 else "not smaller"
    said += f", {words.significant(ratio)} times smaller" if ratio > words.ALIKE else f", which is {little}"
    if file.quality is not None:
        shown = [words.quality(value, document.is_fraction) for value in (before.quality, file.quality)]
        said += f"; {quality_word(document)} {shown[0]} → {shown[1]}"
        inside = [words.change(file.quality_change, document.is_fraction)] if file.quality_change is not None else []
        if file.quality_change_interval:
            inside += [f"95 % interval {words.interval(file.quality_change_interval, document.is_fraction)}"]
        said += f" ({', '.join(inside)})" if inside else ""
    if before.latency_ms and file.latency_ms:
        speed = before.latency_ms / file.latency_ms
        said += {
            "unclear": "; about as fast (the spreads of the clock overlap)",
            "faster": f"; {words.significant(speed)} times faster",
            "slower": f"; {words.significant(1 / speed)} times slower",
            "same": "; as fast as before",
        }[_speed(document, file)]
    return f"{said}."


def sentences(document: Document) -> list[str]:
    """One sentence for each file there is to ship."""
    return [sentence(document, file) for file in document.files]


def heads(document: Document) -> list[str]:
    """The columns of the summary: the original and every file."""
    return ["original", *(title(file) for file in document.files)]


def file_rows(document: Document) -> list[FileRow]:
    """Every measure that was taken, a column for each file; what the network has, whatever the file, has one figure."""
    before, after, files = document.original, document.compressed, document.files
    slowest = slowest_ms(document)

    def time(value: float) -> str:
        return words.milliseconds(value, beside=slowest)

    rows = [_row("file", before.file_bytes, [file.file_bytes for file in files], format_bytes, ("smaller", "larger"))]
    if before.quality is not None or any(file.quality is not None for file in files):
        cells = [_judged(document, file) for file in files]
        rows.append(FileRow(quality_word(document), (Cell(words.quality(before.quality, document.is_fraction)), *cells)))
    network = [("parameters", before.parameters, after.parameters, words.count), ("MACs", before.macs, after.macs, words.large)]
    rows += [_row(name, first, [last] * len(files), show, ("fewer", "more")) for name, first, last, show in network]
    clock = _row("latency", before.latency_ms, [file.latency_ms for file in files], time, ("faster", "slower"))
    samples = [before.latency_samples_ms, *(file.latency_samples_ms for file in files)]
    spreads = [words.spread(each, slowest) for each in samples]
    verdicts = [_speed(document, file) for file in files]
    changes = ["", *("spreads overlap" if v == "unclear" else c.detail for v, c in zip(verdicts, clock.cells[1:], strict=True))]
    details = [", ".join(part for part in pair if part) for pair in zip(changes, spreads, strict=True)]
    cells = [Cell(cell.text, detail) for cell, detail in zip(clock.cells, details, strict=True)]
    rows.append(FileRow(clock.measure, tuple(cells), clock.shares))
    peaks = [file.peak_memory_bytes for file in files]
    rows.append(_row("peak memory", before.peak_memory_bytes, peaks, format_bytes, ("less", "more")))
    return [row for row in rows if any(cell.text != words.MISSING for cell in row.cells)]


def _judged(document: Document, file: Shipped) -> Cell:
    bounds = words.interval(file.quality_change_interval, document.is_fraction)
    change = words.change(file.quality_change, document.is_fraction) if file.quality_change is not None else ""
    return Cell(words.quality(file.quality, document.is_fraction), f"{change} ({bounds})" if bounds else change)


def _row(measure: str, before: float | None, after: list[Any], show: Callable[[Any], str], better: tuple[str, str]) -> FileRow:
    """A row of numbers as `show` puts them, and below each what became of the original's."""
    values = [before, *after]
    known = [value for value in values if value is not None]
    most = max(known, default=0)
    cells = [Cell(words.MISSING if before is None else show(before))]
    for value in after:
        change = "" if value is None or not before else words.times(before, value, *better)
        cells.append(Cell(words.MISSING if value is None else show(value), change))
    shares = (
        tuple(value / most if value is not None else None for value in values)
        if most > words.ALIKE * min(known, default=0) and before is not None
        else ()
    )
    return FileRow(measure, tuple(cells), shares)


def _speed(document: Document, file: Shipped) -> str:
    """ "faster", "slower", "same", "unclear" when the clock cannot tell, or "" when it was not asked."""
    before = document.original
    if not before.latency_ms or not file.latency_ms:
        return ""
    if not clearly_apart(before.latency_samples_ms, file.latency_samples_ms):
        return "unclear"
    ratio = before.latency_ms / file.latency_ms
    return "faster" if ratio > words.ALIKE else "slower" if ratio < 1 / words.ALIKE else "same"
