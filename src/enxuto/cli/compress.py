"""`enxuto compress`: from a task file and a goal, or a recipe, to a folder with the smaller network and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enxuto.cli.options import GOALS, Debug, Json, Macs, MaxDrop, Memory, Out, Quiet, Seed, Size, TaskFile, Time
from enxuto.cli.terminal import session

if TYPE_CHECKING:
    from enxuto.task import Step, Target


def compress(  # noqa: PLR0913  each argument is an option of the command
    task_file: TaskFile,
    size: Size = None,
    compression: Annotated[
        float | None,
        typer.Option("--compression", metavar="TIMES", help="Smallest size before / after: 20.", rich_help_panel=GOALS),
    ] = None,
    macs: Macs = None,
    latency: Annotated[
        str | None,
        typer.Option("--latency", metavar="FRACTION", help="Latency left: 0.7 or 70%.", rich_help_panel=GOALS),
    ] = None,
    max_drop: MaxDrop = None,
    time: Time = None,
    memory: Memory = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="YAML", help="Run these steps instead of searching for a goal.", show_default=False),
    ] = None,
    out: Out = Path("out"),
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress the network of a task file to a goal, or by a recipe, and measure what came out.

    \b
    enxuto compress task.py --size 100kB --max-drop 0.5% --time 20m --out out/
    enxuto compress task.py --compression 20
    enxuto compress task.py --macs 50% --max-drop 1%
    enxuto compress task.py --recipe recipe.yaml

    Ctrl-C ends a search with the best result so far; the same command after a kill goes on where it was.
    Exit code 0: goal met. 3: goal missed, or by a recipe no longer the same network; the files are written nevertheless.
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.cli.outcome import compress_into
        from enxuto.cli.taskfile import load_task

        goals = {"size": size, "compression": compression, "macs": macs, "latency": latency, "max_drop": max_drop}
        steps, target, seconds = _wanted(recipe, goals, time)

        compress_into(run, lambda: load_task(task_file, seed), out, steps=steps, target=target, seconds=seconds, memory=memory)


def _wanted(
    recipe: Path | None, goals: dict[str, Any], time: str | None
) -> tuple[tuple[Step, ...] | None, Target | None, float | None]:
    """The steps or the target, and the time; everything that can be wrong with them is found before any work."""
    from enxuto.errors import RangeError, RecipeError, TargetError
    from enxuto.recipe import from_yaml
    from enxuto.sizes import parse_fraction, parse_seconds
    from enxuto.task import Target

    given = {name: value for name, value in goals.items() if value is not None}
    if recipe is None:
        if not given:
            raise TargetError("no goal was given; write for example --size 100kB --max-drop 0.5%, or --recipe recipe.yaml.")
        for name in ("macs", "latency"):
            if name in given:
                given[name] = parse_fraction(given[name], name)
        return None, Target(**given), None if time is None else parse_seconds(time)
    if given or time is not None:
        extra = f"--{[*given, 'time'][0].replace('_', '-')}"
        raise TargetError(f"{extra} and --recipe were both given; a recipe is run as it stands, so leave out one of them.")
    try:
        steps = from_yaml(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe '{recipe}' cannot be read: {error}; name a YAML file with a list of steps.") from error
    except (RecipeError, RangeError) as error:
        raise type(error)(f"'{recipe}': {error}") from error
    if not steps:
        raise RecipeError(f"recipe '{recipe}' holds no step; write a list of '- step: Name' blocks.")
    return steps, None, None
