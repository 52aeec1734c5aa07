"""The smallest files: each row a network, its data, a limit, and the recipe that was found for it.

The original is trained without the validation images. The recipe's one knob, what a bit is worth, is sought on them: a first
try, then others up or down, each trained, saved as a whole file, loaded afresh and measured. The smallest file within the limit
is the seed's, and for that one alone the test is read, once. Each seed has an original, a validation split and a sweep of its
own; the CPU time is that of the sweep, on one thread.
`python bench/records.py lenet-300-100` makes a row, with three seeds, or with those that are named after it; without a name all;
`table` alone writes docs/records.md anew.
MNIST is read from the file that the environment variable MNIST names, else from ../shared/data/mnist.npz.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import common
import enxuto as ex
from enxuto import data, zoo
from enxuto.evaluation.environment import environment
from enxuto.recipe import line
from enxuto.task import Step

SEEDS = (1, 2, 3)
PAGE = Path(__file__).parent.parent / "docs" / "records.md"
START, END = "<!-- records:start -->", "<!-- records:end -->"
ARRAYS = {"train-images": "xtr", "train-labels": "ytr", "t10k-images": "xte", "t10k-labels": "yte"}
FINE = ex.Quantize(bits=8, per="tensor", fit="absmax", biases=6)
SHORT = {"teacher": 0.7, "precision": "bf16-mixed"}  # what most recipes have in common
SMALL = [ex.PruneChannels(macs=0.1)]
MOVED: Mapping[str, Any] = {"batch": 256, "shift": 1, "tries": 1}
Steps = Callable[[float], Sequence[Step]]


@dataclass(frozen=True)
class Row:
    """One line of the table: an original, a limit on what is lost or on what is right, the size that is wanted, and a recipe."""

    network: str
    source: str
    epochs: int  # of the original
    steps: Steps  # the recipe, by what a bit is worth
    rate: float  # where the sweep begins
    wanted: int  # bytes
    drop: float | None = None  # most that may be lost, of 1
    least: float | None = None  # accuracy, of 1
    sizes: Mapping[str, object] = field(default_factory=dict)
    batch: int = 512
    shift: int = 0
    flip: bool = False
    tries: int = 2
    ratio: float = 1.25  # between two rates that are tried

    @property
    def limit(self) -> str:
        """In words."""
        return f"{100 * (1 - self.least):.1f} % wrong" if self.least else f"{100 * (self.drop or 0):g} points lost"


def main(names: Sequence[str]) -> None:
    """One row after the other, then the page."""
    torch.set_num_threads(1)
    seeds = [int(each) for each in names if each.isdigit()] or SEEDS
    for name in [each for each in names if each in ROWS] or ([] if "table" in names else ROWS):
        for seed in seeds:
            found = made(ROWS[name], seed)
            print(name, found, flush=True)
            tell(name, ROWS[name], found)
    PAGE.write_text(paged(PAGE.read_text()), "utf-8")


def made(row: Row, seed: int) -> dict[str, Any]:
    """The smallest file within the limit that this seed's sweep finds, and what the test says of it."""
    dataset = images(row.source, seed)
    sizes = dict(row.sizes)
    model = zoo.trained(row.network, dataset, epochs=row.epochs, seed=seed, cache=common.CACHE, sizes=sizes)
    task = task_of(row, model, dataset, seed)
    before = right(task.evaluate, model)
    floor = row.least if row.least is not None else before - (row.drop or 0.0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        trials = list(sweep(row, task, floor, Path(folder)))
        seconds = time.process_time() - began
        within = [trial for trial in trials if trial["validation"] >= floor]
        chosen = min(within, key=lambda it: it["bytes"]) if within else max(trials, key=lambda it: it["validation"])
        small = ex.load(Path(folder) / chosen["file"], into=model)
        test = data.accuracy(dataset.test_x, dataset.test_y)
        whole = sum(4 * parameter.numel() for parameter in model.parameters())
        return {
            "seed": seed,
            "bytes": chosen["bytes"],
            "compression": whole / chosen["bytes"],
            "validation": chosen["validation"],
            "validation lost": before - chosen["validation"],
            "test": right(test, small),
            "test lost": right(test, model) - right(test, small),
            "within": bool(within),
            "CPU s": seconds,
            "_trials": trials,
        }


def sweep(row: Row, task: ex.Task, floor: float, folder: Path) -> Iterator[dict[str, Any]]:
    """Some rates, each between what was within the limit and what was not, or beyond both."""
    rate, low, high = row.rate, None, None
    for number in range(row.tries):
        started = time.process_time()
        small, _ = ex.run(task, list(row.steps(rate)))
        path = folder / f"{number}.nxt"
        ex.save(small, path, original=task.model)
        validation = right(task.evaluate, ex.load(path, into=task.model))
        yield {
            "file": path.name,
            "rate": rate,
            "bytes": path.stat().st_size,
            "validation": validation,
            "CPU s": time.process_time() - started,
        }
        low, high = (rate, high) if validation >= floor else (low, rate)
        rate = (low * high) ** 0.5 if low and high else rate * row.ratio if low else rate / row.ratio


def task_of(row: Row, model: nn.Module, dataset: data.Dataset, seed: int) -> ex.Task:
    """What the recipe sees: images to train on, and those of validation."""
    batches = data.batches(dataset.train_x, dataset.train_y, row.batch, seed, shift=row.shift, flip=row.flip)
    return ex.Task(
        model,
        calibration=data.inputs(dataset.train_x[:512], 64),
        evaluate=data.accuracy(dataset.validation_x, dataset.validation_y),
        train=batches,
        loss=F.cross_entropy,
        seed=seed,
    )


def right(accuracy: Any, model: nn.Module) -> float:
    """The part of the images that the network gets right."""
    return float(torch.as_tensor(accuracy(model)).mean())


@functools.cache
def images(source: str, seed: int) -> data.Dataset:
    """The data set, its validation split by the seed."""
    return data.load(mnist() if source == "mnist" else source, seed=seed)


def mnist() -> Path:
    """A folder of MNIST's idx files, made of the arrays of the file that is named."""
    named = os.environ.get("MNIST")
    path = Path(named) if named else Path(__file__).parent.parent.parent / "shared" / "data" / "mnist.npz"
    folder = common.CACHE / "mnist"
    if all((folder / f"{part}-idx{3 if 'images' in part else 1}-ubyte").is_file() for part in ARRAYS):
        return folder
    if not path.is_file():
        raise SystemExit(
            f"MNIST is not at '{path}'; set the environment variable MNIST to an .npz file of xtr, ytr, xte and yte."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(path) as arrays:
        for part, key in ARRAYS.items():
            values = arrays[key].astype(np.uint8)
            values = values.reshape(len(values), 28, 28) if "images" in part else values.reshape(len(values))
            head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            (folder / f"{part}-idx{values.ndim}-ubyte").write_bytes(head + values.tobytes())
    return folder


def tell(name: str, row: Row, found: Mapping[str, Any]) -> None:
    """A seed's row into the results, beside those of other seeds that the same recipe made."""
    path = common.RESULTS / "records.json"
    document = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    told = {
        "network": row.network,
        "data": row.source,
        "limit": row.limit,
        "wanted": row.wanted,
        "recipe": ", ".join(map(line, row.steps(row.rate))),
        "batch": row.batch,
        "shift": row.shift,
        "flip": row.flip,
        "commit": common.commit(),
        "environment": environment(),
    }
    before = document["rows"].get(name, {})
    same = all(before.get(key) == told[key] for key in ("recipe", "limit", "batch", "shift", "flip"))
    seeds = [each for each in before["seeds"] if each["seed"] != found["seed"]] if same else []
    document["rows"][name] = told | {"seeds": sorted([*seeds, found], key=lambda each: each["seed"])}
    common.RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")


def paged(page: str) -> str:
    """The page with its table made anew from the results."""
    path = common.RESULTS / "records.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    lines = ["| row | limit | bytes wanted | bytes | compression | validation | test | within | CPU s |", "|---" * 9 + "|"]
    lines += [_line(name, rows[name]) for name in ROWS if name in rows]
    before, _, rest = page.partition(START)
    return f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}"


def _line(name: str, told: Mapping[str, Any]) -> str:
    seeds = told["seeds"]
    lost = "lost" in told["limit"]

    def spread(key: str, form: Callable[[float], str]) -> str:
        values = [seed[key] for seed in seeds]
        around = f" ({form(min(values))} to {form(max(values))})" if len(values) > 1 else ""
        return form(median(values)) + around

    points: Callable[[float], str] = "{:.2f}".format
    percent = [
        spread(f"{part} lost", lambda it: points(-100 * it)) if lost else spread(part, lambda it: points(100 * it) + " %")
        for part in ("validation", "test")
    ]
    within = sum(seed["bytes"] <= told["wanted"] and seed["within"] for seed in seeds)
    cells = [
        f"{name}: {told['network']}, {told['data']}",
        told["limit"],
        f"{told['wanted']:,}",
        spread("bytes", "{:,.0f}".format),
        spread("compression", "{:,.0f}x".format),
        *percent,
        f"{within} of {len(seeds)}",
        spread("CPU s", "{:,.0f}".format),
    ]
    return "| " + " | ".join(cells) + " |"


def priced(epochs: float, learning_rate: float, first: Sequence[Step] = (), **more: Any) -> Steps:
    """Fine steps, then a training that prices their codes; what comes `first` makes the network smaller, and training faster."""

    def steps(rate: float) -> Sequence[Step]:
        recover = ex.Recover(epochs=epochs, learning_rate=learning_rate, temperature=1.0, rate=rate, **{**SHORT, **more})
        return (*first, FINE, recover)

    return steps


ROWS: Mapping[str, Row] = {
    "lenet-300-100": Row("lenet-300-100", "fashion-mnist", 10, priced(40, 6e-3, average=0.99), 2.1e-6, 5332, drop=0.005),
    "lenet-5": Row(
        "lenet-5",
        "fashion-mnist",
        5,
        priced(20, 4e-3, [ex.PruneChannels(macs=0.35)], average=0.99),
        6e-7,
        11495,
        drop=0.005,
        batch=256,
        tries=1,
    ),
    "resnet-20": Row(
        "resnet-20",
        "fashion-mnist",
        6,
        priced(6, 2e-3, [ex.Fold()]),
        2e-6,
        10960,
        drop=0.005,
        sizes={"stem_stride": 2},
        batch=128,
        tries=1,
    ),
    "lenet-300-100, digits": Row("lenet-300-100", "mnist", 10, priced(40, 6e-3), 1.9e-6, 5332, least=0.981, tries=1),
    "lenet-5, digits": Row("lenet-5", "mnist", 4, priced(25, 6e-3, SMALL, teacher=0.0), 6e-6, 1724, least=0.99, **MOVED),
    "lenet-5, digits, finer": Row(
        "lenet-5", "mnist", 4, priced(25, 6e-3, SMALL, teacher=0.0), 1.3e-6, 3079, least=0.993, **MOVED
    ),
}

if __name__ == "__main__":
    main(sys.argv[1:])
