"""The charts of the page, as plotly figures: what is shown and how it is labelled.

Colours of text and grid lines are the page's, so that they follow light, dark and paper.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from enxuto.reports import summary, words
from enxuto.reports.document import Document, Entry, Trial
from enxuto.sizes import format_bytes

# Readable under white letters and beside each other on light and dark paper.
COLOURS = ("#2f6f8f", "#8a5a2b", "#5b6f2e", "#8a3d5c", "#4f52a0", "#2e7563", "#9a4a2f", "#6b5b7b")
ROOT, BEFORE, AFTER = "#5a6270", "#8b93a0", "#2e8b6e"


@dataclass(frozen=True)
class Chart:
    """One figure with its title and what it shows, for readers who cannot see it."""

    id: str
    title: str
    caption: str
    figure: go.Figure


def treemaps(document: Document) -> list[Chart]:
    """Bytes by layer, before and after; each fills its own frame, so areas compare within one map only."""
    charts = []
    colours = _colours([*document.before_ledger, *document.ledger])
    for which, entries in (("before", summary.before_ledger(document)), ("after", document.ledger)):
        total = sum(entry.bytes for entry in entries)
        if total > 0:
            title = f"{which.capitalize()}: {format_bytes(total)}"
            largest = max(summary.totals(entries).items(), key=lambda item: item[1])
            caption = f"Bytes by layer {which} compression; the largest is {largest[0]}"
            caption += f" with {words.percent(largest[1] / total, 0)}."
            charts.append(Chart(f"bytes-{which}", title, caption, _treemap(entries, colours)))
    return charts


def latency(document: Document) -> list[Chart]:
    """Every latency sample as a dot beside the box of its quartiles; empty without samples."""
    runs = [(f"original {document.original.precision}".strip(), document.original.latency_samples_ms, BEFORE)]
    for index, export in enumerate(document.exports):
        runs.append((summary.exported_name(document, index), export.latency_samples_ms, AFTER))
    if not any(summary.is_chosen(document, index) for index in range(len(document.exports))):
        name = f"compressed {document.compressed.precision}".strip()
        runs.insert(1, (name, document.compressed.latency_samples_ms, AFTER))
    runs = [run for run in runs if run[1]]
    if not runs:
        return []
    figure = go.Figure(layout=layout(height=90 + 70 * len(runs)))
    for name, samples, colour in reversed(runs):  # plotly draws upwards
        figure.add_trace(
            go.Box(
                x=list(samples),
                name=safe(words.printable(name)).replace(" (", "<br>("),
                boxpoints="all",
                jitter=0.5,
                pointpos=0,
                marker={"color": colour, "size": 4, "opacity": 0.55},
                line={"color": colour, "width": 1.5},
                fillcolor="rgba(128,128,128,0.12)",
                hovertemplate="%{x:.4g} ms<extra></extra>",
            )
        )
    figure.update_xaxes(
        title={"text": "milliseconds a call", "font": {"size": 13}}, rangemode="tozero", fixedrange=True, nticks=6
    )
    figure.update_yaxes(fixedrange=True, automargin=True)
    caption = "Latency samples of each export; the dots are single runs, the box is the middle half."
    return [Chart("latency", "Latency of single calls", caption, figure)]


def history(document: Document) -> list[Chart]:
    """What the search tried: bytes against quality, the best so far joined by a line; empty without trials."""
    trials = [trial for trial in document.history if trial.quality is not None]
    if not trials:
        return []
    figure = go.Figure(layout=layout(height=380))
    kept = [trial for trial in trials if trial.kept]
    tried = [trial for trial in trials if not trial.kept]
    figure.add_trace(_dots(document, tried, "tried", BEFORE, "circle-open", "markers"))
    figure.add_trace(_dots(document, kept, "best so far", AFTER, "circle", "lines+markers"))
    figure.update_xaxes(title={"text": "kilobytes of the file", "font": {"size": 13}}, fixedrange=True, nticks=6)
    quality = summary.quality_word(document) if document.quality_name != "test" else "validation quality"
    unit = ", %" if document.is_fraction else ""
    figure.update_yaxes(title={"text": f"{quality}{unit}", "font": {"size": 13}}, fixedrange=True, automargin=True)
    _draw_goals(figure, document)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    caption = f"{words.plural(len(trials), 'trial')} of the search by file size and quality."
    return [Chart("history", "Quality against file size, one dot a recipe", caption, figure)]


def _draw_goals(figure: go.Figure, document: Document) -> None:
    """A line across for the largest file and one for the least quality that were asked for."""
    size, least = goals(document)
    line = {"color": ROOT, "dash": "dot", "width": 1.5}
    if size is not None:
        figure.add_vline(x=size / 1000, line=line)
        words_ = {"text": f"goal: {format_bytes(round(size))}", "showarrow": False, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(x=size / 1000, y=0, yref="paper", **words_)
    if least is not None:
        figure.add_hline(y=least * (100 if document.is_fraction else 1), line=line)
        told = f"goal: {words.quality(least, document.is_fraction)}"
        figure.add_annotation(
            x=1,
            xref="paper",
            y=least * (100 if document.is_fraction else 1),
            text=told,
            showarrow=False,
            xanchor="right",
            yanchor="bottom",
        )


def goals(document: Document) -> tuple[float | None, float | None]:
    """The largest file in bytes and the least quality that were asked for, None where nothing was.

    The least quality is known where the original's was measured on what the trials were judged on.
    """
    target = document.target
    if target is None:
        return None, None
    sizes = [float(target.size)] if target.size else []
    sizes += [document.original.file_bytes / target.compression] if target.compression else []
    judged = document.quality_name != "test" and document.original.quality is not None and target.max_drop is not None
    least = document.original.quality - target.max_drop if judged else None  # type: ignore[operator]
    return (min(sizes) if sizes else None), least


def _dots(document: Document, trials: Sequence[Trial], name: str, colour: str, symbol: str, mode: str) -> go.Scatter:
    scale = 100 if document.is_fraction else 1
    notes = []
    for trial in trials:
        figures = f"{format_bytes(trial.file_bytes)}, {words.quality(trial.quality, document.is_fraction)}"
        when = f"after {words.seconds(trial.seconds)}"
        notes.append("<br>".join(map(safe, [trial.recipe, f"{figures}, {when}", trial.why])))
    return go.Scatter(
        x=[trial.file_bytes / 1000 for trial in trials],
        y=[scale * trial.quality for trial in trials if trial.quality is not None],
        name=name,
        mode=mode,
        marker={"color": colour, "size": 10, "symbol": symbol, "line": {"width": 2}},
        line={"color": colour, "width": 1, "dash": "dot"},
        hovertext=notes,
        hoverinfo="text",
    )


@dataclass(frozen=True)
class _Tile:
    """A module, a layer, or one kind of bytes in it; `path` is that of the layer whose colour it has."""

    label: str
    path: str
    bytes: int
    inside: tuple[_Tile, ...] = ()


def _grow(label: str, path: str, items: Sequence[tuple[tuple[str, ...], int]]) -> _Tile:
    """The tile of everything in `items` (way and bytes); a module merges with its only child."""
    groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for way, size in items:
        if way:
            groups.setdefault(way[0], []).append((way[1:], size))
    total = sum(size for _, size in items)
    below = {step: path if not any(way for way, _ in group) else f"{path}.{step}" for step, group in groups.items()}
    if len(groups) > 1:
        tiles = tuple(_grow(step, below[step].lstrip("."), group) for step, group in groups.items())
        return _Tile(label or "whole file", path, total, tiles)
    for step, group in groups.items():
        if below[step] != path:
            return _grow(f"{label}.{step}".lstrip("."), below[step].lstrip("."), group)
    return _Tile(label or "whole file", path, total)


def _way(entry: Entry) -> tuple[str, ...]:
    """The way from the root to an entry: modules by name, then the kind of bytes or the tensor."""
    kind = entry.kind or entry.name.rpartition(".")[2] or "bytes"
    return (*summary.place(entry).split("."), kind)


def _treemap(entries: Sequence[Entry], colours: dict[str, str]) -> go.Figure:
    """Nested by the dots of the paths; a layer with several tensors or kinds is split once more."""
    root = _grow("", "", [(_way(entry), entry.bytes) for entry in entries if entry.bytes > 0])
    tiles: list[tuple[_Tile, str, str]] = []

    def walk(tile: _Tile, parent: str) -> None:
        tiles.append((tile, f"{len(tiles)}", parent))
        here = tiles[-1][1]
        for inner in tile.inside:
            walk(inner, here)

    walk(root, "")
    figure = go.Treemap(
        ids=[own for _, own, _ in tiles],
        parents=[parent for _, _, parent in tiles],
        labels=[safe(tile.label) for tile, _, _ in tiles],
        values=[tile.bytes for tile, _, _ in tiles],
        text=[format_bytes(tile.bytes) for tile, _, _ in tiles],
        branchvalues="total",
        marker={"colors": [colours.get(tile.path, ROOT) for tile, _, _ in tiles], "line": {"width": 1}},
        textinfo="label+text",
        textfont={"color": "#ffffff"},
        hovertemplate="%{label}<br>%{text}, %{percentRoot:.1%}<extra></extra>",
        tiling={"pad": 1},
        pathbar={"visible": False},
    )
    return go.Figure(figure, layout=layout(height=400, margin=0))


def _colours(entries: Sequence[Entry]) -> dict[str, str]:
    """A colour for every layer, the same in both maps; the header and what only holds layers stay grey."""
    paths = dict.fromkeys(summary.place(entry) for entry in entries)
    paths.pop(summary.HEADER, None)
    return {path: COLOURS[index % len(COLOURS)] for index, path in enumerate(paths)}


def layout(height: int, margin: int = 8) -> go.Layout:
    """What all charts share: no paper of their own, nothing that moves under the finger."""
    return go.Layout(
        template="none",
        height=height,
        margin={"l": margin, "r": margin, "t": margin, "b": margin and 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        dragmode=False,
        font={"family": "system-ui, sans-serif", "size": 13},
        hoverlabel={"bgcolor": "#20242c", "font": {"color": "#ffffff"}},
    )


def safe(text: str) -> str:
    """Text that plotly shows as it is: its labels understand some HTML."""
    return html.escape(text, quote=False)
