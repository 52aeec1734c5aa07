"""What a teacher's terms bring back of what cutting took: each beside labels alone and soft labels, in equal epochs.

A ResNet-8 on Fashion-MNIST, its channels cut to a quarter of the MACs and trained on a twentieth of the images, as who
compresses a network of someone else has few. Three seeds of the order of batches (and of what projections and invented inputs
begin with): the median of the points lost, and of the part of what labels alone leave lost that came back, with the least and the
largest. Without data, as many updates as with. Weights are the defaults, which were chosen on the validation split (`python
bench/distillation.py choose`: seed 0, 5,000 images, 6 epochs), which the original never saw; the test is read once, in the end.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import common
import enxuto as ex
from enxuto import data
from file_coders import network

MACS, RATE = 0.25, 3e-3
IMAGES, EPOCHS, BATCH = 2_500, 20, 128
CHOICE = (5_000, 6, 64)  # images, epochs and batch where weights are chosen
FEW = 256  # samples that are invented, and as many real ones beside them
SEEDS = (1, 2, 3)
STAGES = ("stages.0", "stages.1", "stages.2")


@dataclass(frozen=True)
class Way:
    """What goes into `Recover`, and what data there are."""

    teacher: float = 0.5
    terms: tuple[Any, ...] = ()
    data: str = "labelled"


T = ex.terms
LABELS, SOFT = "labels alone", "labels and soft labels, half and half"
FEATURES, CONTRAST = T.Features(STAGES, projection=True), T.Contrast("pool", projection=True)
WAYS: dict[str, Way] = {
    LABELS: Way(teacher=0.0),
    SOFT: Way(),
    "labels, Decoupled": Way(0.0, (T.Decoupled(),)),
    "labels, Logits": Way(0.0, (T.Logits(),)),
    "both, Features": Way(terms=(FEATURES,)),
    "both, Attention": Way(terms=(T.Attention(STAGES),)),
    "both, Relations": Way(terms=(T.Relations("pool"),)),
    "both, Contrast": Way(terms=(CONTRAST,)),
    "both, Features and Contrast": Way(terms=(FEATURES, CONTRAST)),
    "no labels": Way(1.0, data="unlabelled"),
    f"no labels, {FEW} images": Way(1.0, data="few"),
    f"no data, {FEW} invented": Way(1.0, data="invented"),
    f"no data, {FEW} of noise": Way(1.0, data="noise"),
}


def choices() -> Iterator[tuple[str, Way]]:
    """The ways at several weights."""
    yield from ((name, WAYS[name]) for name in (LABELS, SOFT, "no labels"))
    yield "teacher 0.9", Way(0.9)
    for weight in (0.1, 0.5, 2.0):
        for beta in (1.0, 4.0):
            yield f"Decoupled {weight} {beta}", Way(0.0, (T.Decoupled(weight, beta=beta),))
    for weight in (0.03, 0.1, 0.3, 1.0):
        yield f"Logits {weight}", Way(0.0, (T.Logits(weight),))
    for weight in (0.3, 1.0, 3.0, 10.0):
        yield f"Features {weight}", Way(terms=(T.Features(STAGES, weight, projection=True),))
        yield f"Features pool {weight}", Way(terms=(T.Features("pool", weight, projection=True),))
        yield f"Attention {weight}", Way(terms=(T.Attention(STAGES, weight),))
    for weight in (1.0, 10.0, 100.0):
        yield f"Relations {weight}", Way(terms=(T.Relations("pool", weight),))
    for weight in (0.1, 0.5, 2.0):
        yield f"Contrast {weight}", Way(terms=(T.Contrast("pool", weight, projection=True),))


def main(what: Sequence[str]) -> None:
    """The table, or what was tried for it."""
    torch.set_num_threads(1)
    model, task = network("resnet-8")
    cut, _ = ex.run(task, [ex.PruneChannels(macs=MACS)])
    if "choose" in what:
        for name, way in choices():
            spent, found = trained(way, model, cut, 0, *CHOICE)
            print(f"{name:28} {correct(found, 'validation'):.4f} {spent:.1f} s", flush=True)
        return
    whole = {split: correct(model, split) for split in ("validation", "test")}
    lost: dict[str, dict[str, list[float]]] = {name: {"validation": [], "test": [], "s": []} for name in WAYS}
    for seed in SEEDS:
        for name, way in WAYS.items():
            spent, found = trained(way, model, cut, seed)
            for split, known in whole.items():
                lost[name][split].append(100 * (known - correct(found, split)))
            lost[name]["s"].append(spent)
            print(seed, name, {key: round(values[-1], 2) for key, values in lost[name].items()}, flush=True)
    common.tell(
        "distillation", f"ResNet-8 cut to {MACS:.0%} of the MACs, {IMAGES} images, {EPOCHS} epochs", table(lost), _whole=whole
    )


def table(lost: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, object]]:
    """A row for each way."""
    rows = []
    for name, of in lost.items():
        row: dict[str, object] = {"way": name}
        for split in ("validation", "test"):
            row |= {f"{split} lost": median(of[split]), f"{split} from": min(of[split]), f"{split} to": max(of[split])}
            parts = [1 - mine / labels for mine, labels in zip(of[split], lost[LABELS][split], strict=False)]
            row[f"{split} back"] = median(parts)
        rows.append(row | {"seeds": len(of["s"]), "CPU s": median(of["s"]), "_all": dict(of)})
    return rows


def trained(
    way: Way, model: nn.Module, cut: nn.Module, seed: int, images: int = IMAGES, epochs: float = EPOCHS, batch: int = BATCH
) -> tuple[float, nn.Module]:
    """The cut network after training that way, and the CPU seconds of it."""
    d = dataset()
    x, y = d.train_x[:images], d.train_y[:images]
    start = time.process_time()
    if way.data == "labelled":
        train = data.batches(x, y, batch_size=batch, seed=seed)
        task = ex.Task(model, calibration=data.inputs(x, batch), train=train, loss=F.cross_entropy, seed=seed)
    else:
        given = {"unlabelled": x, "few": x[:FEW]}.get(way.data)
        if given is None:
            noise = torch.randn(FEW, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
            given = torch.cat(ex.invent(model, tuple(x.shape[1:]), FEW, seed=seed)) if way.data == "invented" else noise
        epochs *= images / len(given)
        task = ex.Task(model, calibration=data.inputs(given, batch), outputs="classes", seed=seed)
    step = ex.Recover(epochs=epochs, learning_rate=RATE, teacher=way.teacher, terms=way.terms)
    small, _ = step(cut, task)
    return time.process_time() - start, small


@functools.cache
def dataset() -> data.Dataset:
    """Read once."""
    return common.dataset()


def correct(model: nn.Module, split: str) -> float:
    """The part of a split that is right."""
    d = dataset()
    x, y = (d.validation_x, d.validation_y) if split == "validation" else (d.test_x, d.test_y)
    return float(torch.as_tensor(data.accuracy(x, y)(model.eval())).mean())


if __name__ == "__main__":
    main(sys.argv[1:])
