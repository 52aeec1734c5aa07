"""`enxuto inspect --sensitivity`: what each layer loses by each change, and what is unstable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from enxuto.cli.terminal import Session


def inspect_sensitivity(run: Session, path: Path, seed: int | None, out: Path | None) -> None:
    """Measures the task in the file, or finds what was measured before, and shows it.

    Raises: ArtifactError when the file is no task.
    """
    from enxuto.errors import ArtifactError

    if path.suffix != ".py":
        raise ArtifactError(f"'{path}' is no task file; --sensitivity changes the layers of a network: give a task file (.py).")
    from rich.text import Text

    from enxuto.cli.taskfile import load_task
    from enxuto.reports.tables import plain_table
    from enxuto.sensitivities import sensitivity

    with run.progress():
        task = load_task(path, seed)
        run.kept = (
            "nothing was kept" if out is None else f"what was measured is in '{out}', and the same command goes on from there"
        )
        found = sensitivity(task, folder=out)
    run.answer({"file": str(path), **asdict(found)})
    about = f"{found.name}: outputs move, squared, of their variance over {found.samples} samples; bytes of the layer's weights"
    run.show(Text(about, style="bold"), *(plain_table(title, heads, rows, left=1) for title, heads, rows in found.tables()))
    run.show(*(f"- {note}" for note in found.notes()))
