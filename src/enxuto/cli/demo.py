"""`enxuto demo`: a small residual network on real data, trained once, compressed to a stated size and drop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enxuto.cli.options import Debug, Json, Macs, MaxDrop, Out, Quiet, Seed, Size, Time
from enxuto.cli.terminal import session

if TYPE_CHECKING:
    from enxuto.task import Task

NETWORK = "resnet-8"
EPOCHS = 3  # of the largest data set; smaller ones get as many batches, up to MOST_EPOCHS
LARGEST_SAMPLES, MOST_EPOCHS = 50_000, 30
SIZE, MACS, MAX_DROP, TIME = "20kB", "50%", "2%", "120s"


def demo(  # noqa: PLR0913  each argument is an option of the command
    data: Annotated[
        str,
        typer.Option("--data", metavar="FOLDER|NAME", help="fashion-mnist, digits, auto, or a folder of idx files."),
    ] = "auto",
    out: Out = Path("out"),
    size: Size = SIZE,
    macs: Macs = MACS,
    max_drop: MaxDrop = MAX_DROP,
    time: Time = TIME,
    json: Json = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a small residual network on real data and compress it, in a few minutes.

    \b
    enxuto demo
    enxuto demo --data digits --size 15kB
    enxuto demo --data ~/mnist --time 1m --out mnist-out/

    The data is Fashion-MNIST where Debian's dataset-fashion-mnist is installed, else the digits of scikit-learn. The
    trained network is kept in ~/.cache/enxuto, or in the folder that ENXUTO_CACHE names.
    """
    with session(json=json, quiet=quiet, debug=debug) as run:
        from enxuto.cli.outcome import compress_into
        from enxuto.sizes import parse_fraction, parse_seconds
        from enxuto.task import Target

        target = Target(size=size, macs=parse_fraction(macs) if macs else None, max_drop=max_drop)
        compress_into(run, lambda: demo_task(data, seed or 0), out, target=target, seconds=parse_seconds(time or TIME))


def demo_task(source: str, seed: int) -> Task:
    """The demo's network, trained or from the cache, and its data."""
    from torch.nn import functional

    from enxuto import data, zoo
    from enxuto.progress import say
    from enxuto.task import Task

    names = data.SOURCES
    images = data.load(source if source in names else Path(source).expanduser(), seed)
    epochs = min(MOST_EPOCHS, EPOCHS * max(1, LARGEST_SAMPLES // len(images.train_x)))
    model = zoo.trained(
        NETWORK,
        images,
        epochs=epochs,
        seed=seed,
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
