"""What a document says, in sentences and rows: shared by the page and the terminal, so that both say the same."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from enxuto.evaluation.points import points
from enxuto.reports import words
from enxuto.reports.document import Document, Entry, Measured, MemoryUse, StepRecord, Trial
from enxuto.sizes import format_bytes

QUALITY = {"test": "test quality", "evaluate": "validation quality", "agreement": "agreement with the original"}
KINDS = (
    "payload",
    "table",
    "grid",
    "codebook",
    "bias",
    "float",
    "graph",
    "header",
)  # columns of the ledger, in this order; others follow

IN_WORDS = {
    "payload": "weights",
    "table": "code tables",
    "grid": "scales",
    "codebook": "codebooks",
    "bias": "biases",
    "float": "left in float",
}

HEADER = "(header)"
MANY = 20  # rows of a table: longer ones are folded


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and in smaller letters below it."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One measure of the original beside the compressed network; `shares` are the lengths of two bars, in [0, 1]."""

    measure: str
    original: Cell
    compressed: Cell
    change: Cell
    shares: tuple[float, float] | None = None


@dataclass(frozen=True)
class LayerBytes:
    """The bytes of one layer in the original's file, and in the compressed file by kind."""

    path: str
    before: int | None
    kinds: dict[str, int]

    @property
    def after(self) -> int:
        """Bytes of the layer in the compressed file."""
        return sum(self.kinds.values())


def quality_word(document: Document) -> str:
    """What the quality is called."""
    return QUALITY.get(document.quality_name, document.quality_name)


def certainty(document: Document) -> str:
    """What the interval rests on and whether it shows a difference at all; empty without an interval."""
    bounds = document.quality_change_interval
    if bounds is None:
        return "Without one value per sample there is no interval: the change of quality may be chance."
    basis = f"{document.files[0].name}: over {document.samples:,} samples, each seen by both networks, the difference"
    if bounds[0] <= 0 <= bounds[1]:
        return f"{basis} may be chance: the 95 % interval contains zero."
    return f"{basis} is more than chance: the 95 % interval does not contain zero."


def goal(document: Document) -> str:
    """What was asked for, in words; empty when nothing was."""
    target = document.target
    if target is None:
        return ""
    asked = []
    if target.size is not None:
        asked.append(f"a file of at most {format_bytes(target.size)}")
    if target.compression is not None:
        asked.append(f"at least {words.significant(target.compression)} times smaller")
    if target.macs is not None:
        asked.append(f"at most {words.percent(target.macs, 0)} of the MACs")
    if target.latency is not None:
        asked.append(f"at most {words.percent(target.latency, 0)} of the latency")
    if target.max_drop is not None:
        asked.append(f"at most {points(target.max_drop, document.is_fraction)} of quality lost")
    return ", ".join(asked)


def notes(document: Document) -> list[str]:
    """What must be said aloud; what is said of several files or of several layers is said once, with their names.

    Two notes are the same but for a name when they differ in their first word, or in the one thing they quote.
    """
    told: dict[tuple[str, str], dict[str, None]] = {}
    for note in filter(None, map(str.strip, document.notes)):
        quoted = re.findall(r"'[^']*'", note)
        name = quoted[0] if len(quoted) == 1 else note.partition(" ")[0].rstrip(":")
        before, _, after = note.partition(name)
        told.setdefault((before, after), {})[name] = None
    return [f"{before}{_listed(list(names))}{after}" for (before, after), names in told.items()]


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = list(names) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    return ", ".join(shown[:-1]) + " and " * (len(shown) > 1) + shown[-1]


def outcome(trial: Trial) -> str:
    """Why a trial was kept or dropped, without the size of its file, which stands beside it."""
    return trial.why.removeprefix(f"{format_bytes(trial.file_bytes)}, ")


def slowest_ms(document: Document) -> float:
    """The longest time that is shown: what is compared stands in one unit, that of the largest."""
    found = [(one.latency_ms, one.latency_samples_ms) for one in (document.original, document.compressed)]
    found += [(one.latency_ms, one.latency_samples_ms) for one in document.ship]
    found += [(one.latency_ms, one.latency_samples_ms) for one in document.exports]
    spreads = [quantiles(samples, n=4, method="inclusive")[2] for _, samples in found if len(samples) >= 4]
    return max([time or 0.0 for time, _ in found] + spreads)


def pair_rows(document: Document) -> list[Row]:
    """Every measure that was taken of two networks, each a file of its own, or of one of them."""
    before, after, fraction = document.original, document.compressed, document.is_fraction
    slowest = slowest_ms(document)
    rows = [row("file", before.file_bytes, after.file_bytes, format_bytes, ("smaller", "larger"))]
    if before.quality is not None or after.quality is not None:
        bounds = words.interval(document.quality_change_interval, fraction)
        rows += [
            Row(
                quality_word(document),
                Cell(words.quality(before.quality, fraction)),
                Cell(words.quality(after.quality, fraction)),
                Cell(words.change(document.change, fraction), f"95 %: {bounds}" if bounds else ""),
            )
        ]
    rows += [
        row("parameters", before.parameters, after.parameters, words.count, ("fewer", "more")),
        row("MACs", before.macs, after.macs, words.large, ("fewer", "more")),
        row(
            "latency",
            before.latency_ms,
            after.latency_ms,
            functools.partial(words.milliseconds, beside=slowest),
            ("faster", "slower") if clearly_apart(before.latency_samples_ms, after.latency_samples_ms) else None,
            details=(_timing(before, slowest), _timing(after, slowest)),
        ),
        row("peak memory", before.peak_memory_bytes, after.peak_memory_bytes, format_bytes, ("less", "more")),
    ]
    return [row for row in rows if {row.original.text, row.compressed.text} != {words.MISSING}]


def memory_rows(use: MemoryUse) -> list[Row]:
    """The bytes at the fullest moment of each network: of all, then of each category that has any, in the order of both."""
    runs = (use.before, use.after)
    parts = [{} if run is None else {"all at the fullest moment": run.peak_bytes} | run.by_category for run in runs]
    rows = []
    for category in dict.fromkeys([*parts[0], *parts[1]]):
        first, last = (None if run is None else part.get(category, 0) for run, part in zip(runs, parts, strict=True))
        if first or last:
            rows.append(row(words.printable(category), first, last, format_bytes, ("less", "more")))
    return rows


def layer_word(path: str) -> str:
    """The path of a layer as it is shown; an empty one is the model itself."""
    return words.printable(path) or "(model)"


def place(entry: Entry) -> str:
    """Where an entry belongs: its layer, the header, or the model itself."""
    return HEADER if entry.kind == "header" and not entry.path else layer_word(entry.path)


def changed(record: StepRecord) -> list[tuple[str, str, str]]:
    """Every layer that a step changed, what it did and why."""
    return [(layer_word(change.path), change.what, change.why) for change in record.changes]


def left_alone(document: Document) -> list[tuple[str, str, str, str]]:
    """Every layer that a step left as it was, the step, what stayed and why."""
    records = document.records
    return [(layer_word(it.path), record.step, it.what, it.why) for record in records for it in record.skipped]


def totals(entries: Sequence[Entry]) -> dict[str, int]:
    """The bytes of every layer as `place` calls it, in the order in which they first occur."""
    sums: dict[str, int] = {}
    for entry in entries:
        sums[place(entry)] = sums.get(place(entry), 0) + entry.bytes
    return sums


def before_ledger(document: Document) -> tuple[Entry, ...]:
    """The original's bytes by layer; what its file has beyond them is a header, so that they sum to the file."""
    rest = document.original.file_bytes - sum(entry.bytes for entry in document.before_ledger)
    header = (Entry(path="", bytes=rest, kind="header"),) if document.before_ledger and rest > 0 else ()
    return (*document.before_ledger, *header)


def layer_bytes(document: Document) -> list[LayerBytes]:
    """The bytes of every layer before and after, in the order of the original's file; the header comes last.

    A layer that a step made of another ("fc1.down" out of "fc1") is counted with the layer it came from.
    """
    before = totals(before_ledger(document))
    kinds: dict[str, dict[str, int]] = {path: {} for path in before}
    for entry in document.ledger:
        path = home(place(entry), before)
        of_layer = kinds.setdefault(path, {})
        of_layer[entry.kind or "payload"] = of_layer.get(entry.kind or "payload", 0) + entry.bytes
    layers = [LayerBytes(path, before.get(path), found) for path, found in kinds.items()]
    return sorted(layers, key=lambda layer: layer.path == HEADER)


def all_layers(document: Document) -> LayerBytes:
    """The sums over all layers, as one row."""
    layers = layer_bytes(document)
    kinds = {kind: sum(layer.kinds.get(kind, 0) for layer in layers) for kind in ledger_kinds(document)}
    return LayerBytes("all", sum(layer.before or 0 for layer in layers) or None, kinds)


def ledger_kinds(document: Document) -> list[str]:
    """The kinds of bytes the compressed file has, in the order of the columns."""
    found = dict.fromkeys(entry.kind or "payload" for entry in document.ledger)
    return [kind for kind in KINDS if kind in found] + [kind for kind in found if kind not in KINDS]


def kind_word(kind: str) -> str:
    """What a kind of bytes is called: the ledger's own words are those of the format."""
    return words.printable(IN_WORDS.get(kind, kind))


def ledger_gap(document: Document) -> str:
    """What must be said when the ledger does not sum to the file; empty when it does."""
    total = sum(entry.bytes for entry in document.ledger)
    if not document.ledger or total == document.compressed.file_bytes:
        return ""
    return f"The ledger sums to {total:,} bytes, but the file has {document.compressed.file_bytes:,}: it is incomplete."


def exported_name(document: Document, index: int) -> str:
    """The file of an export, marked when small.onnx is a copy of it."""
    name = words.printable(f"small.{document.exports[index].precision}.onnx")
    return f"{name} (= small.onnx)" if is_chosen(document, index) else name


def is_chosen(document: Document, index: int) -> bool:
    """True when small.onnx is a copy of this export."""
    return document.exports[index].precision == document.compressed.precision


def clearly_apart(first: Sequence[float], second: Sequence[float]) -> bool:
    """True unless the middle halves of two networks' latency samples overlap: then no ratio means anything."""
    if min(len(first), len(second)) < 4:
        return True
    (low, _, high), (other_low, _, other_high) = (quantiles(each, n=4, method="inclusive") for each in (first, second))
    return high < other_low or other_high < low


def row(
    measure: str,
    before: int | float | None,
    after: int | float | None,
    show: Callable[[Any], str],
    better: tuple[str, str] | None,
    details: tuple[str, str] = ("", ""),
) -> Row:
    """A row of two numbers as `show` puts them, and what became of the first; `better` are the words for less and more."""
    shown = [words.MISSING if value is None else show(value) for value in (before, after)]
    shares = None
    if before is not None and after is not None and max(before, after) > words.ALIKE * min(before, after):
        shares = (before / max(before, after), after / max(before, after))
    return Row(
        measure,
        Cell(shown[0], details[0]),
        Cell(shown[1], details[1]),
        Cell(words.times(before, after, *better) if better else "spreads overlap"),
        shares,
    )


def _timing(measured: Measured, beside: float) -> str:
    parts = [words.printable(measured.precision), words.spread(measured.latency_samples_ms, beside)]
    return ", ".join(part for part in parts if part)


def home(path: str, known: Mapping[str, int]) -> str:
    """The path itself or the nearest module above it that the original's file has; else the path as it is."""
    above = path
    while above and above not in known:
        above = above.rpartition(".")[0]
    return above or path
