"""The memory of a run as charts: what is alive over time with the layer under the cursor, and who holds it at the peak.

The networks before and after stand beside each other to one scale, areas of the maps included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from enxuto.reports import summary, words
from enxuto.reports.charts import ROOT, Chart, layout, safe
from enxuto.reports.document import MemoryRun, MemoryUse
from enxuto.reports.summary import memory_rows
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
LEAST_SIDE = 0.04  # of a map's frame: what is smaller could not be found


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
    return Section(
        title,
        words.printable(use.words),
        columns=(*(words.printable(which) for which, _ in known), "change")[: len(known) + (len(known) == 2)],
        networks=len(known),
        rows=tuple(memory_rows(use)),
        over_time=tuple(_over_time(f"{name}-time-{at}", which, run, most) for at, (which, run) in enumerate(known)),
        by_layer=tuple(_by_layer(f"{name}-layers-{at}", which, run, most) for at, (which, run) in enumerate(known)),
    )


def _over_time(name: str, which: str, run: MemoryRun, most: int) -> Chart:
    """Stacked areas, one a category, in steps; one invisible line tells the place and all bytes under the cursor."""
    figure = go.Figure(layout=layout(height=360))
    ends = [*run.at, run.moments]
    for category in [*COLOURS, *(found for found in run.bytes if found not in COLOURS)]:
        line = run.bytes.get(category, ())
        if any(line):
            figure.add_trace(
                go.Scatter(
                    x=ends,
                    y=[*line, line[-1]],
                    name=safe(words.printable(category)),
                    stackgroup="alive",
                    line={"width": 0, "shape": "hv"},
                    fillcolor=COLOURS.get(category, OTHER),
                    hoverinfo="skip",
                )
            )
    totals = [sum(line[at] for line in run.bytes.values()) for at in range(len(run.at))]
    figure.add_trace(
        go.Scatter(
            x=run.at,
            y=totals,
            mode="lines",
            line={"width": 0, "color": ROOT},
            showlegend=False,
            hovertext=[_hover(run, at) for at in range(len(run.at))],
            hoverinfo="text",
        )
    )
    figure.add_annotation(
        x=run.at[run.peak],
        y=run.peak_bytes,
        text=f"{format_bytes(run.peak_bytes)}, {safe(_place(run, run.peak))}",
        xanchor="left" if run.at[run.peak] < run.moments / 2 else "right",
        yanchor="bottom",
        showarrow=False,
        yshift=4,
    )
    title = {"text": "operators, in their order", "font": {"size": 13}}
    figure.update_xaxes(title=title, range=[0, run.moments], fixedrange=True, nticks=6)
    figure.update_yaxes(range=[0, 1.15 * most], ticksuffix="B", tickformat="~s", fixedrange=True, automargin=True, nticks=6)
    figure.update_layout(hovermode="x", showlegend=True, legend={"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0})
    caption = f"Bytes alive, {which}; most is {format_bytes(run.peak_bytes)} at {_place(run, run.peak)}."
    return Chart(name, f"{words.printable(which).capitalize()}: {format_bytes(run.peak_bytes)}", caption, figure)


def _hover(run: MemoryRun, at: int) -> str:
    phase, operator = words.printable(run.phases[at]), words.printable(run.operators[at])
    lines = [f"<b>{safe(summary.layer_word(run.paths[at]))}</b>", f"{safe(phase)}: {safe(operator)}"]
    parts = [(category, line[at]) for category, line in run.bytes.items() if line[at]]
    lines += [f"{safe(words.printable(category))} {format_bytes(size)}" for category, size in parts]
    return "<br>".join([*lines, f"all {format_bytes(sum(size for _, size in parts))}"])


def _place(run: MemoryRun, at: int) -> str:
    return f"{words.printable(run.phases[at])} of {summary.layer_word(run.paths[at])}"


def _by_layer(name: str, which: str, run: MemoryRun, most: int) -> Chart:
    """Every layer a tile, its categories inside; the whole map has the part of its frame that the peak is of the largest."""
    layers: dict[str, dict[str, int]] = {}
    for path, category, size in run.layers:
        layers.setdefault(summary.layer_word(path), {})[words.printable(category)] = size
    total = sum(sum(parts.values()) for parts in layers.values())
    tiles = [("all", "", "all", total, ROOT)]
    for number, (path, parts) in enumerate(layers.items()):
        only = next(iter(parts)) if len(parts) == 1 else None
        colour = COLOURS.get(only, OTHER) if only else ROOT
        tiles.append((f"{number}", "all", f"{path}, {only}" if only else path, sum(parts.values()), colour))
        if not only:
            tiles += [(f"{number} {each}", f"{number}", each, size, COLOURS.get(each, OTHER)) for each, size in parts.items()]
    side = max((total / most) ** 0.5 if most else 1.0, LEAST_SIDE)
    treemap = go.Treemap(
        ids=[tile[0] for tile in tiles],
        parents=[tile[1] for tile in tiles],
        labels=[safe(tile[2]) for tile in tiles],
        values=[tile[3] for tile in tiles],
        text=[format_bytes(tile[3]) for tile in tiles],
        branchvalues="total",
        marker={"colors": [tile[4] for tile in tiles], "line": {"width": 1}},
        textinfo="label+text",
        textfont={"color": "#ffffff"},
        hovertemplate="%{label}<br>%{text}, %{percentRoot:.1%}<extra></extra>",
        tiling={"pad": 1},
        pathbar={"visible": False},
        domain={"x": [0, side], "y": [1 - side, 1]},
    )
    largest = max(layers, key=lambda path: sum(layers[path].values()), default="nothing")
    caption = f"Bytes by layer and category at the fullest moment, {which}; the largest is {largest}."
    title = f"{words.printable(which).capitalize()}, by layer at that moment"
    return Chart(name, title, caption, go.Figure(treemap, layout=layout(height=360, margin=0)))
