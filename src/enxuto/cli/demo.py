"""`enxuto demo`: a residual network on real data, trained once, compressed by a recipe that never looks at the clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enxuto.cli.options import Debug, Json, Macs, MaxDrop, Out, Quiet, Seed, Size, Time
from enxuto.cli.terminal import session

if TYPE_CHECKING:
    from enxuto.data import Dataset
    from enxuto.task import Step, Task

NETWORK = "resnet-8"
WIDTHS = (48, 96, 192)  # a call takes some hundred microseconds: at 50 the clock could not tell what became of it
FULL_STEM_BELOW = 16  # pixels: smaller images are not halved at once
EPOCHS = 2  # of the largest data set; smaller ones get as many batches, up to MOST_EPOCHS
LARGEST_SAMPLES, MOST_EPOCHS = 50_000, 30


def demo(  # noqa: PLR0913  each argument is an option of the command
    data: Annotated[
        str,
        typer.Option("--data", metavar="FOLDER|NAME", help="fashion-mnist, digits, auto, or a folder of idx files."),
    ] = "auto",
    out: Out = Path("out"),
    size: Size = None,
    macs: Macs = None,
    max_drop: MaxDrop = None,
    time: Time = None,
    json: Json = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a residual network on real data and compress it, in a few minutes.

    \b
    enxuto demo
    enxuto demo --data digits --out digits-out/
    enxuto demo --size 30kB --max-drop 2% --time 5m

    The data is Fashion-MNIST where Debian's dataset-fashion-mnist is installed, else the digits of scikit-learn. The
    recipe is fixed, so the same bytes come out on a busy machine; with a goal one is searched for. The trained network is
    kept in ~/.cache/enxuto, or in the folder that ENXUTO_CACHE names.
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto import data as sources
        from enxuto.cli.outcome import compress_into
        from enxuto.sizes import parse_fraction, parse_seconds
        from enxuto.task import Target

        images = sources.load(data if data in sources.SOURCES else Path(data).expanduser(), seed or 0)
        epochs = min(MOST_EPOCHS, EPOCHS * max(1, LARGEST_SAMPLES // len(images.train_x)))
        goal = (size, macs, max_drop) != (None, None, None)
        fraction = parse_fraction(macs, "macs") if macs else None
        compress_into(
            run,
            lambda: demo_task(images, epochs, seed or 0),
            out,
            steps=None if goal else recipe(epochs),
            target=Target(size=size, macs=fraction, max_drop=max_drop) if goal else None,
            seconds=parse_seconds(time) if time else None,
        )


def recipe(epochs: float) -> tuple[Step, ...]:
    """A quarter of the multiplications, a fifth of the weights that are left, 16 values for each layer.

    Trained in between for as long as the network was, which is `epochs`.
    """
    from enxuto import Fold, Prune, PruneChannels, Recover, Share

    return (
        PruneChannels(macs=0.25),
        Recover(epochs=0.5 * epochs, learning_rate=2e-3),
        Prune(0.8),
        Recover(epochs=0.3 * epochs, learning_rate=2e-3),
        Fold(),
        Share(bits=4, biases=8),
        Recover(epochs=0.2 * epochs, learning_rate=3e-4),
    )


def demo_task(images: Dataset, epochs: int, seed: int) -> Task:
    """The demo's network, trained or from the cache, and its data."""
    from torch.nn import functional

    from enxuto import data, zoo
    from enxuto.progress import say
    from enxuto.task import Task

    model = zoo.trained(
        NETWORK,
        images,
        epochs=epochs,
        seed=seed,
        sizes={"widths": WIDTHS, "stem_stride": 1 if images.image_size < FULL_STEM_BELOW else 2},
        cache=cache_folder(),
        progress=lambda done, total, _: say(f"training {NETWORK} on {images.name}", done, total),
    )
    return Task(
        model,
        calibration=data.inputs(images.train_x[:1024], 128),
        evaluate=data.accuracy(images.validation_x, images.validation_y),
        train=data.batches(images.train_x, images.train_y, 128, seed),
        loss=functional.cross_entropy,
        test=data.accuracy(images.test_x, images.test_y),
        seed=seed,
        name=f"{NETWORK} on {images.name}",
    )


def cache_folder() -> Path:
    """Where trained networks are kept: $ENXUTO_CACHE, else ~/.cache/enxuto (or under $XDG_CACHE_HOME)."""
    named = os.environ.get("ENXUTO_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "enxuto"
