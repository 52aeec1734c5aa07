"""The charts of a result: where the bytes are, how long calls take, what the search tried. How they are drawn is in svg.py."""

from __future__ import annotations

from dataclasses import replace
from statistics import median, quantiles

from markupsafe import Markup

from enxuto.reports import summary, svg, words
from enxuto.reports.document import Document, Trial
from enxuto.reports.svg import AFTER, BEFORE, LINE, WIDTH, Chart
from enxuto.sizes import format_bytes

LEFT, TOP, HEIGHT = 56, 28, 270  # of the frame of the search: room for numbers at its left, for words above it
MANY = 60  # trials: from here on their dots are smaller
STRIP = 56  # of everything that was timed


def bytes_before(document: Document) -> list[svg.Bar]:
    """The bytes of every layer in the original's file, in its order."""
    return [(layer.path, {"weights": layer.before}) for layer in summary.layer_bytes(document) if layer.before]


def bytes_after(document: Document) -> list[svg.Bar]:
    """The bytes of every layer in the compressed file by kind, in the same order."""
    rows = summary.layer_bytes(document)
    return [(row.path, {summary.kind_word(kind): size for kind, size in row.kinds.items()}) for row in rows if row.after]


def layers(document: Document) -> list[Chart]:
    """Bytes by layer, before and after; each has its own scale, so lengths compare within one chart only."""
    kinds = [summary.kind_word(kind) for kind in summary.ledger_kinds(document)]
    palette = {kind: svg.PALETTE[at % len(svg.PALETTE)] for at, kind in enumerate(kinds)}
    charts = []
    for which, rows, colours in (
        ("before", bytes_before(document) if document.before_ledger else [], {"weights": BEFORE}),
        ("after", bytes_after(document) if document.ledger else [], palette),
    ):
        total = sum(sum(parts.values()) for _, parts in rows)
        if total > 0:
            name, parts = max(rows, key=lambda row: sum(row[1].values()))
            caption = f"Bytes by layer {which} compression; the largest is {name}"
            caption += f" with {words.percent(sum(parts.values()) / total, 0)}."
            shown = svg.fewer(rows)
            drawing = svg.bars(caption, shown, colours, max(sum(parts.values()) for _, parts in shown))
            charts.append(Chart(f"bytes-{which}", f"{which.capitalize()}: {format_bytes(total)}", caption, drawing))
    return charts


Run = tuple[str, tuple[float, ...], str]
"""The name, the samples in milliseconds and the colour of something that was timed."""


def timed(document: Document) -> list[Run]:
    """Everything that was timed."""
    runs = [(f"original {document.original.precision}".strip(), document.original.latency_samples_ms, BEFORE)]
    for index, export in enumerate(document.exports):
        runs.append((summary.exported_name(document, index), export.latency_samples_ms, AFTER))
    if not any(summary.is_chosen(document, index) for index in range(len(document.exports))):
        name = f"compressed {document.compressed.precision}".strip()
        runs.insert(1, (name, document.compressed.latency_samples_ms, AFTER))
    return [run for run in runs if run[1]]


def latency(document: Document) -> list[Chart]:
    """Every latency sample as a dot over the middle half and the median; empty without samples."""
    runs = timed(document)
    if not runs:
        return []
    slowest = summary.slowest_ms(document)
    unit, size = words.time_unit(slowest)
    most = max(max(samples) for _, samples, _ in runs)
    numbers = svg.Scale(0, 1.04 * most / size, 8, WIDTH - 8)
    strips = [_strip(run, STRIP * at, replace(numbers, high=1.04 * most), slowest) for at, run in enumerate(runs)]
    foot = STRIP * len(runs) + 4
    caption = "Latency samples of everything that was timed; the dots are single runs, the box is the middle half. "
    caption += " ".join(f"{name}: median {words.milliseconds(median(samples), slowest)}." for name, samples, _ in runs)
    drawing = svg.drawing(foot + 2 * LINE + 6, caption, svg.axis_across(numbers, foot, 0, f"{unit} a call"), *strips)
    return [Chart("latency", "Latency of single calls", caption, drawing)]


def _strip(run: Run, top: float, across: svg.Scale, slowest: float) -> Markup:
    """One run: its name and median above, its samples over the box of their middle half below."""
    name, samples, colour = run
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    middle = across(median(samples))
    box = svg.element(
        "rect",
        title=f"{name}: the middle half of {words.plural(len(samples), 'call')}, {words.spread(samples, slowest)}",
        x=across(low),
        y=top + 22,
        width=max(across(high) - across(low), 1),
        height=24,
        rx=2,
        fill=colour,
        stroke=colour,
        class_="box",
    )
    dots = [
        svg.element(
            "circle",
            title=words.milliseconds(sample, slowest),
            cx=across(sample),
            cy=top + 34 + 3 * (at * 3 % 7 - 3),  # so that no dot hides its neighbour
            r=2.2,
            fill=colour,
            class_="sample",
        )
        for at, sample in enumerate(samples)
    ]
    told = svg.label(WIDTH, top + 14, f"median {words.milliseconds(median(samples), slowest)}", "end", "quiet halo")
    line = svg.element("line", x1=middle, x2=middle, y1=top + 20, y2=top + 48, stroke=colour, stroke_width=2.5)
    return Markup("").join([svg.label(0, top + 14, name, kind="halo"), told, box, *dots, line])


def history(document: Document) -> list[Chart]:
    """What the search tried: bytes against quality, the best so far joined by a line; empty without trials."""
    trials = [trial for trial in document.history if trial.quality is not None]
    if not trials:
        return []
    size, least = goals(document)
    scale = 100 if document.is_fraction else 1
    levels = [_level(trial) for trial in trials] + ([least] if least is not None else [])
    across = svg.around([trial.file_bytes for trial in trials] + ([size] if size is not None else []), LEFT, WIDTH - 8)
    up = svg.around([scale * level for level in levels], HEIGHT, TOP)
    quality = summary.QUALITY.get(document.judged_name or document.quality_name, "validation quality")
    parts = [
        svg.axis_across(across, HEIGHT, TOP, "size of the file", svg.round_bytes),
        svg.axis_up(up, LEFT, WIDTH, f"{quality}, %" if document.is_fraction else quality),
    ]
    way = " ".join(f"{across(trial.file_bytes):.1f},{up(scale * _level(trial)):.1f}" for trial in trials if trial.kept)
    parts.append(svg.element("polyline", points=way, stroke=AFTER, class_="way"))
    for trial in sorted(trials, key=lambda trial: trial.kept):  # the best are drawn over the others
        dot = {"cx": across(trial.file_bytes), "cy": up(scale * _level(trial)), "r": 5 if len(trials) <= MANY else 3.5}
        colours = {"fill": AFTER, "class_": "kept"} if trial.kept else {"stroke": BEFORE, "class_": "tried"}
        parts.append(svg.element("circle", title=_told(document, trial), **dot, **colours))
    parts += _goal_lines(document, across, up)
    key, height = svg.legend(
        [("best so far", AFTER)] * any(trial.kept for trial in trials)
        + [("tried", BEFORE)] * any(not trial.kept for trial in trials),
        HEIGHT + 2 * LINE + 4,
    )
    caption = f"{words.plural(len(trials), 'trial')} of the search by file size and quality."
    caption += f" Asked for: {summary.goal(document)}." if size is not None or least is not None else ""
    whole = svg.drawing(HEIGHT + 2 * LINE + 4 + height, caption, *parts, key)
    return [Chart("history", "Quality against file size, one dot a recipe", caption, whole)]


def _level(trial: Trial) -> float:
    assert trial.quality is not None
    return trial.quality


def _told(document: Document, trial: Trial) -> str:
    figures = f"{format_bytes(trial.file_bytes)}, {words.quality(trial.quality, document.is_fraction)}"
    return "\n".join(filter(None, [trial.recipe, f"{figures}, after {words.seconds(trial.seconds)}", summary.outcome(trial)]))


def _goal_lines(document: Document, across: svg.Scale, up: svg.Scale) -> list[Markup]:
    """A line up for the largest file and one across for the least quality that were asked for."""
    size, least = goals(document)
    parts = []
    if size is not None:
        x, told = across(size), f"goal: {format_bytes(round(size))}"
        right = x + 6 + svg.LETTER * len(told) > WIDTH
        parts.append(svg.line(x, TOP, x, HEIGHT, "goal-line"))
        parts.append(svg.label(x - 6 if right else x + 6, HEIGHT - 8, told, "end" if right else "start", "halo"))
    if least is not None:
        y = up(least * (100 if document.is_fraction else 1))
        parts.append(svg.line(LEFT, y, WIDTH, y, "goal-line"))
        parts.append(svg.label(WIDTH, y - 6, f"goal: {words.quality(least, document.is_fraction)}", "end", "halo"))
    return parts


def goals(document: Document) -> tuple[float | None, float | None]:
    """The largest file in bytes and the least quality that were asked for, None where nothing was.

    The least quality is that of the original on the data on which the trials were judged, less what may be lost.
    """
    target = document.target
    if target is None:
        return None, None
    sizes = [float(target.size)] if target.size else []
    sizes += [document.original.file_bytes / target.compression] if target.compression else []
    judged = document.judged_quality
    if judged is None and document.quality_name != "test":
        judged = document.original.quality
    least = judged - target.max_drop if judged is not None and target.max_drop is not None else None
    return (min(sizes) if sizes else None), least
