"""The memory of a run as charts: what is alive over time with the layer under the cursor, and who holds it at the peak.

The networks before and after stand beside each other to one scale, bars included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from enxuto.reports import summary, svg, words
from enxuto.reports.document import MemoryRun, MemoryUse
from enxuto.reports.summary import memory_rows
from enxuto.reports.svg import LINE, WIDTH, Chart
from enxuto.sizes import format_bytes

COLOURS = {
    "weights": "#2f6f8f",
    "gradients": "#c08a4e",
    "optimizer states": "#4f52a0",
    "activations": "#2e8b6e",
    "inputs": "#6b5b7b",
    "temporaries": "#a8516f",
}  # in the order in which they are stacked; those of the drawn pictures
OTHER = "#8b93a0"
LEFT, TOP, HEIGHT = 66, 6, 220  # of the frame: room for numbers at its left
NARROWEST = 7.0  # stretch that a cursor finds


@dataclass(frozen=True)
class Section:
    """One kind of run: what it is, the table of its fullest moments, and its charts in pairs."""

    title: str
    words: str
    columns: tuple[str, ...]
    networks: int
    rows: tuple[summary.Row, ...]
    over_time: tuple[Chart, ...]
    by_layer: tuple[Chart, ...]


def sections(uses: Sequence[MemoryUse]) -> list[Section]:
    """What is shown of each run, or why it is not known."""
    return [_section(f"memory-{number}", use) for number, use in enumerate(uses, 1)]


def _section(name: str, use: MemoryUse) -> Section:
    title = words.printable(use.what).capitalize()
    title += f", {words.plural(use.batch, 'sample')}" if use.batch else ""
    if use.before and use.after and use.before.by_category == use.after.by_category:  # said once, drawn once
        first, second = map(words.printable, use.names)
        same = f"{first} and {second} hold the same at the fullest moment, so one of them is shown"
        use = replace(use, after=None, words="; ".join(part for part in (use.words, same) if part))
    known = [(which, run) for which, run in zip(use.names, (use.before, use.after), strict=True) if run is not None]
    most = max([run.peak_bytes for _, run in known], default=1)
    bars = [holders(run, known[0][1]) for _, run in known]
    longest = max([sum(parts.values()) for rows in bars for _, parts in rows], default=1)
    time = tuple(_over_time(f"{name}-time-{at}", which, run, most) for at, (which, run) in enumerate(known))
    layers = [
        _by_layer(f"{name}-layers-{at}", *pair, rows, longest) for at, (pair, rows) in enumerate(zip(known, bars, strict=True))
    ]
    return Section(
        title,
        words.printable(use.words),
        columns=(*(words.printable(which) for which, _ in known), "change")[: len(known) + (len(known) == 2)],
        networks=len(known),
        rows=tuple(memory_rows(use)),
        over_time=time,
        by_layer=tuple(layers),
    )


def colours(run: MemoryRun) -> dict[str, str]:
    """The colour of every category in the order in which they are stacked; those of a later version come last."""
    return {each: COLOURS.get(each, OTHER) for each in [*COLOURS, *(found for found in run.bytes if found not in COLOURS)]}


def holders(run: MemoryRun, first: MemoryRun) -> list[svg.Bar]:
    """What every layer holds at the fullest moment, by category; the smallest summed up.

    What a step put into a layer ("fc1.coded.weight") is counted with the layer of the first network it stands in.
    """
    known = dict.fromkeys([*first.paths, *(path for path, *_ in first.layers)], 0)
    layers: dict[str, dict[str, int]] = {}
    for path, category, size in run.layers:
        parts = layers.setdefault(summary.layer_word(summary.home(path, known)), {})
        parts[category] = parts.get(category, 0) + size
    return svg.fewer(list(layers.items()))


def stacks(run: MemoryRun) -> dict[str, list[int]]:
    """For every category that ever holds something, the bytes of it and of all below it at each moment."""
    below = [0] * len(run.at)
    found = {}
    for category in colours(run):
        held = run.bytes.get(category, ())
        if any(held):
            below = [under + own for under, own in zip(below, held, strict=True)]
            found[category] = below
    return found


def _over_time(name: str, which: str, run: MemoryRun, most: int) -> Chart:
    """Stacked areas, one a category, in steps; stretches of one layer tell its bytes under the cursor."""
    across = svg.Scale(0, run.moments, LEFT, WIDTH)
    up = svg.Scale(0, 1.15 * most or 1, HEIGHT, TOP)
    told, found = colours(run), stacks(run)
    at, right = across(run.at[run.peak]), run.at[run.peak] > run.moments / 2
    peak = f"{format_bytes(run.peak_bytes)}, {_place(run, run.peak)}"
    key, height = svg.legend([(category, told[category]) for category in found], HEIGHT + 2 * LINE + 4)
    caption = f"Bytes alive, {which}; most is {format_bytes(run.peak_bytes)} at {_place(run, run.peak)}."
    whole = svg.drawing(
        HEIGHT + 2 * LINE + 4 + height,
        caption,
        svg.axis_up(up, LEFT, WIDTH, "", svg.round_bytes),
        *(_area(run, heights, told[category], across, up) for category, heights in reversed(found.items())),
        svg.axis_across(across, HEIGHT, HEIGHT, "operators, in their order"),
        svg.label(at, up(run.peak_bytes) - 6, svg.shortened(peak, max(at, WIDTH - at)), "end" if right else "start", "halo"),
        *_stretches(run, across),
        key,
    )
    return Chart(name, f"{words.printable(which).capitalize()}: {format_bytes(run.peak_bytes)} at most", caption, whole)


def _area(run: MemoryRun, heights: Sequence[int], colour: str, across: svg.Scale, up: svg.Scale) -> Markup:
    """Everything below the steps of `heights`; what is stacked below is drawn over it afterwards."""
    way, before = [f"M{across(run.at[0]):.1f} {up(0):.1f}"], None
    for start, height in zip(run.at, heights, strict=True):
        if height != before:
            way.append(f"H{across(start):.1f}V{up(height):.1f}")
        before = height
    return svg.element("path", d="".join([*way, f"H{across(run.moments):.1f}V{up(0):.1f}Z"]), fill=colour)


def _stretches(run: MemoryRun, across: svg.Scale) -> list[Markup]:
    """Moments of one layer in one phase, or as many as a cursor can find; each tells its fullest moment."""
    ends = [*run.at[1:], run.moments]
    totals = [sum(held[at] for held in run.bytes.values()) for at in range(len(run.at))]
    parts, first = [], 0
    for at, end in enumerate(ends):
        alike = at + 1 < len(ends) and (run.paths[at + 1], run.phases[at + 1]) == (run.paths[first], run.phases[first])
        width = across(end) - across(run.at[first])
        if at + 1 == len(ends) or (width >= NARROWEST and not alike):
            fullest = max(range(first, at + 1), key=totals.__getitem__)
            box = {"x": across(run.at[first]), "y": TOP, "width": width, "height": HEIGHT - TOP}
            parts.append(svg.element("rect", title=_told(run, fullest), **box, class_="under"))
            first = at + 1
    return parts


def _told(run: MemoryRun, at: int) -> str:
    held = [(category, line[at]) for category, line in run.bytes.items() if line[at]]
    lines = [summary.layer_word(run.paths[at]), f"{run.phases[at]}: {run.operators[at]}"]
    lines += [f"{category} {format_bytes(size)}" for category, size in held]
    return "\n".join([*lines, f"all {format_bytes(sum(size for _, size in held))}"])


def _place(run: MemoryRun, at: int) -> str:
    return f"{words.printable(run.phases[at])} of {summary.layer_word(run.paths[at])}"


def _by_layer(name: str, which: str, run: MemoryRun, rows: Sequence[svg.Bar], longest: int) -> Chart:
    """A bar a layer, its categories in pieces, to the scale of both networks."""
    largest = max(rows, key=lambda row: sum(row[1].values()), default=("nothing", {}))[0]
    caption = f"Bytes by layer and category at the fullest moment, {which}; the largest is {largest}."
    title = f"{words.printable(which).capitalize()}, by layer at that moment"
    return Chart(name, title, caption, svg.bars(caption, rows, colours(run), longest, keyed=False))
