"""What a person sees of a watch in the terminal while it runs: bytes now and at the fullest moment, as bars."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from enxuto.memory.profile import CATEGORIES, Profile
from enxuto.memory.recording import resident_bytes
from enxuto.sizes import format_bytes

REFRESHES_PER_SECOND = 4  # few, because the training shares its processors with the view
BAR = 16  # letters of the longest bar


class Watched(Protocol):
    """What the view reads; it may be asked at any moment, from another thread."""

    steps: int
    peak_bytes: int
    fullest: Profile | None

    @property
    def now(self) -> dict[str, int]: ...


def view(watch: Watched, console: Console | None = None) -> Live:
    """A live table of the watch on stderr; what the loop prints appears above it, and the last state stays."""
    console = console or Console(file=sys.stderr)
    return Live(
        get_renderable=lambda: table(watch),
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else it would lose its way into a file
    )


def table(watch: Watched) -> Table:
    """The bytes of each category now and at the fullest moment, to one scale, and where that moment was."""
    now = watch.now
    peak = watch.fullest.by_category if watch.fullest is not None else {}
    scale = max([sum(now.values()), watch.peak_bytes, 1])
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    for _ in range(2):
        grid.add_column(min_width=BAR)
        grid.add_column(justify="right", min_width=8)
    grid.add_row(
        Text(f"{watch.steps:,} {'step' if watch.steps == 1 else 'steps'}", style="bold"),
        Text("now"),
        "",
        Text("at the peak" if peak else ""),
        "",
    )
    for category in CATEGORIES:
        if now.get(category) or peak.get(category):
            grid.add_row(Text(category), *_cells(now.get(category, 0), scale), *_cells(peak.get(category), scale))
    total = watch.peak_bytes if peak else None
    grid.add_row(Text("all tensors"), *_cells(sum(now.values()), scale), *_cells(total, scale), style="bold")
    if rss := resident_bytes():
        grid.add_row(Text("process (RSS)", style="dim"), "", Text(format_bytes(rss), style="dim"), "", "")
    outer = Table.grid()
    outer.add_row(grid)
    if watch.fullest is not None:
        outer.add_row(Text(f"peak: {place(watch.fullest)}", style="dim", no_wrap=True, overflow="ellipsis"))
    return outer


def place(profile: Profile) -> str:
    """The fullest moment in words: phase, layer, operator."""
    moment = profile.moments[profile.peak]
    layer = f"'{moment.path}'" if moment.path else "outside of all layers"
    return f"{moment.phase}, {layer}, {moment.operator}"


def _cells(size: int | None, scale: int) -> tuple[Text, Text]:
    if size is None:
        return Text(""), Text("")
    return Text("█" * max(round(BAR * size / scale), size > 0), style="cyan"), Text(format_bytes(size))
