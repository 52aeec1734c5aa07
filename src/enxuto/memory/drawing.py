"""A profile as a picture, PNG or SVG: memory over time, and the layers that hold most at the fullest moment.

Several profiles stand beside each other to one scale: original and compressed, inference and training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from enxuto.errors import OutputError, TaskError
from enxuto.files import as_path, whole_file
from enxuto.memory.outline import Outline, outline
from enxuto.memory.profile import CATEGORIES, Profile
from enxuto.sizes import format_bytes

COLOURS = dict(zip(CATEGORIES, ("#2f6f8f", "#c08a4e", "#4f52a0", "#2e8b6e", "#6b5b7b", "#a8516f"), strict=True))
"""Readable beside each other, in print and on a screen; the report has the same."""
INK, QUIET = "#1d2129", "#8b93a0"
KINDS = (".png", ".svg")
MOST_MOMENTS, MOST_LAYERS = 600, 12
SHORT = 0.05  # of the run: a phase that is not longer gets no name
WIDTH, HEIGHT = 6.4, 7.6  # inches of one profile
STYLE: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "enxuto", "axes.spines.top": False, "axes.spines.right": False}


def draw(what: Profile | Mapping[str, Profile], path: str | os.PathLike[str]) -> None:
    """Writes a profile, or several with their names, as a .png or .svg file, whole or not at all.

    The same profiles give the same bytes. matplotlib is imported when it is first needed.
    Raises: OutputError for another kind of file or one that cannot be written; TaskError for no profile.
    """
    file = as_path(path)
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise OutputError(f"'{file}' is no kind of picture that is drawn here; name it '{file.stem}.svg' or '{file.stem}.png'.")
    profiles = {"": what} if isinstance(what, Profile) else what
    if not isinstance(profiles, Mapping) or not profiles or not all(isinstance(each, Profile) for each in profiles.values()):
        raise TaskError(f"{type(what).__name__} holds no profile to draw; give what memory.predict or memory.record returned.")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    outlines = {name: outline(profile, MOST_MOMENTS) for name, profile in profiles.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(outlines), HEIGHT), layout="constrained")
        above, below = figure.subplots(2, len(outlines), squeeze=False, height_ratios=(1.1, 1))
        for axes, (name, brief) in zip(above, outlines.items(), strict=True):
            _timeline(axes, f"{name}: " if name else "", brief, max(each.peak_bytes for each in outlines.values()))
        widest = max([sum(parts.values()) for brief in outlines.values() for _, parts in _bars(brief)[0]], default=1)
        for axes, brief in zip(below, outlines.values(), strict=True):
            _layers(axes, brief, widest)
        found = {label: handle for axes in above for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        shown = [category for category in CATEGORIES if category in found]
        columns = min(len(shown), 3 * len(outlines))
        figure.legend([found[label] for label in shown], shown, loc="outside lower center", ncols=columns, frameon=False)
        with whole_file(file) as temporary:
            figure.savefig(temporary, format=kind[1:], dpi=150, metadata={"Date": None} if kind == ".svg" else {"Software": None})


def _timeline(axes: Any, name: str, brief: Outline, most: int) -> None:
    """Stacked areas of what is alive, with the phases and the fullest moment named; `most` is the top of the scale."""
    x = np.array([*brief.at, brief.moments])
    used = [category for category in CATEGORIES if any(brief.bytes[category])] or [*CATEGORIES[:1]]
    lines = [np.array([*brief.bytes[category], brief.bytes[category][-1]]) for category in used]
    axes.stackplot(x, lines, labels=used, colors=[COLOURS[category] for category in used], step="post", linewidth=0)
    axes.set(
        xlim=(0, brief.moments),
        ylim=(0, 1.25 * max(most, 1)),
        xlabel="operators of the run, in their order",
        ylabel="bytes alive",
    )
    axes.set_title(f"{name}{format_bytes(brief.peak_bytes)} at the fullest moment", loc="left", fontweight="bold")
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(int(value)))
    for phase, first, last in _stretches(brief):
        if last - first > SHORT * brief.moments:
            axes.axvline(first, color=QUIET, linewidth=0.8, linestyle=":")
            axes.text(first, 1.245 * most, f" {phase}", color=QUIET, va="top")
    at, right = brief.at[brief.peak], brief.at[brief.peak] > brief.moments / 2
    axes.plot([at], [brief.peak_bytes], marker="v", color=INK, markersize=5)
    words = f"{brief.paths[brief.peak] or '(model)'}\n{brief.operators[brief.peak]}"
    axes.annotate(
        words,
        (at, brief.peak_bytes),
        xytext=(-8 if right else 8, 6),
        textcoords="offset points",
        ha="right" if right else "left",
        color=INK,
        parse_math=False,
    )


def _layers(axes: Any, brief: Outline, most: int) -> None:
    """The layers with most bytes at the fullest moment, by category; the others are one line."""
    bars, rest = _bars(brief)
    for row, (_, parts) in enumerate(bars):
        left = 0
        for category in CATEGORIES:
            axes.barh(row, parts.get(category, 0), left=left, color=COLOURS[category], height=0.75)
            left += parts.get(category, 0)
        axes.text(left, row, f" {format_bytes(left)}", va="center", color=INK)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], parse_math=False)
    axes.text(0, len(bars), rest, va="center", color=QUIET)
    axes.set(xlim=(0, 1.2 * most), ylim=(MOST_LAYERS + 0.6, -0.6), title="layers at the fullest moment")
    axes.title.set_horizontalalignment("left")
    axes.title.set_x(0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _bars(brief: Outline) -> tuple[list[tuple[str, dict[str, int]]], str]:
    """The largest layers by name with their bytes by category, the largest first, and a word on the others."""
    layers: dict[str, dict[str, int]] = {}
    for path, category, size in brief.layers:
        layers.setdefault(path or "(model)", {})[category] = size
    ranked = list(layers.items())
    rest = sum(sum(parts.values()) for _, parts in ranked[MOST_LAYERS:])
    words = f" and {len(ranked) - MOST_LAYERS} others with {format_bytes(rest)} together" if rest else ""
    return ranked[:MOST_LAYERS], words


def _stretches(brief: Outline) -> list[tuple[str, int, int]]:
    """The phases in their order, with the moments at which they begin and end."""
    starts = [at for at in range(len(brief.at)) if at == 0 or brief.phases[at] != brief.phases[at - 1]]
    ends = [*(brief.at[start] for start in starts[1:]), brief.moments]
    return [(brief.phases[start], brief.at[start], end) for start, end in zip(starts, ends, strict=True)]
