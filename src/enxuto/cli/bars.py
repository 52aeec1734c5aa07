"""Progress bars for what the library says of its long jobs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from enxuto.errors import without_escapes

MOST_ROWS = 3
REFRESHES_PER_SECOND = 4  # few, because a search shares its processors with the bar


class Bars:
    """A listener for `enxuto.progress`: one row for each job that is under way, outermost first.

    A row ends when its job is done. A job that goes on under another name (the next step of a recipe) keeps its row.
    """

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn())
        self.progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=REFRESHES_PER_SECOND
        )
        self.rows: dict[str, tuple[TaskID, int, int]] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the row of `what` to `done` of `total`; a total of 0 is not known yet."""
        if 0 < total <= done:
            self._remove(what)
            return
        row = self.rows.pop(what)[0] if what in self.rows else self._row_for(what, done, total)
        self.rows[what] = (row, done, total)
        self.progress.update(row, description=_shortened(what), completed=done, total=total or None)

    def _row_for(self, what: str, done: int, total: int) -> TaskID:
        """A new row, or that of a job with as many parts that was not further: it goes on under this name."""
        for name, (row, before, all_of_it) in list(self.rows.items()):
            if all_of_it == total and before <= done and (total == 0 or before < done):
                del self.rows[name]
                return row
        while len(self.rows) >= MOST_ROWS:
            self._remove(next(iter(self.rows)))
        return self.progress.add_task(_shortened(what), total=None)  # drawn at once, so it has its name from the start

    def _remove(self, what: str) -> None:
        if what in self.rows:
            self.progress.remove_task(self.rows.pop(what)[0])


def _shortened(what: str) -> str:
    line = " ".join(without_escapes(what).split())
    return line if len(line) <= 60 else f"{line[:59]}…"
