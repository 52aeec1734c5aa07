"""Which way to zeros loses least, at equal zeros and equal epochs: in one blow, little by little, by movement, with weights that
come back, and with thresholds and gates that are learned.

LeNet-300-100 on Fashion-MNIST; the same learning rate at its height, the original as teacher, three seeds of what is by chance.
What a method of learned gates comes to is cut to the sparsity in question by magnitude, or left where it is sparser. Points are
those lost on the validation split, which the original never saw; nothing is chosen by them but defaults, so no test is read.
`python bench/sparse_training.py 8 0.97`: the epochs and the sparsity. `python bench/sparse_training.py 4 0.97 scratch`: networks
that never were dense, on labels alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

import common
import enxuto as ex
from enxuto import data, zoo
from enxuto.sites import sites
from file_coders import network

SEEDS = (0, 1, 2)
HIGH = 2e-3  # learning rate of all


def main(epochs: float, sparsity: float, scratch: bool) -> None:
    """One table."""
    torch.set_num_threads(1)
    model, task = network("lenet-300-100")
    d, before, rows = common.dataset(), quality(task, model), []
    for way, steps in ways(epochs, sparsity, scratch):
        drops, found, started = [], [], time.process_time()
        for seed in SEEDS:
            order = data.batches(d.train_x, d.train_y, batch_size=128, seed=seed)
            given = replace(task, seed=seed, train=order, model=fresh(seed) if scratch else model)
            small, _ = ex.run(given, steps)
            found.append(zeros(small))
            if found[-1] < sparsity - 1e-4:
                small, _ = ex.run(replace(given, model=small), [ex.Prune(sparsity, scores="magnitude")])
            drops.append(100 * (before - quality(task, small)))
        seconds = (time.process_time() - started) / len(SEEDS)
        row: dict[str, Any] = {"way": way, "points lost": median(drops), "from": min(drops), "to": max(drops)}
        row |= {"zeros": median(found), "seconds": seconds}
        rows.append(row)
        print(row, flush=True)
    name = f"sparse_training_{'scratch_' if scratch else ''}{epochs:g}_{sparsity:g}"
    common.tell(name, f"points lost at {sparsity:.1%} zeros after {epochs:g} epochs{' from scratch' if scratch else ''}", rows)


def ways(epochs: float, sparsity: float, scratch: bool) -> Iterator[tuple[str, Sequence[ex.Step]]]:
    """Each way as a recipe."""
    more: dict[str, Any] = {"epochs": epochs, "learning_rate": HIGH} | ({"teacher": 0.0} if scratch else {})
    yield "dense, pruned after", [ex.Recover(**more), ex.Prune(sparsity)]
    yield "one blow", [ex.Prune(sparsity), ex.Recover(**more)]
    for scores in ("lamp",) if scratch else ("lamp", "magnitude", "movement"):
        yield f"gradual, {scores}", [ex.Recover(**more, during=[ex.Prune(sparsity, scores=scores)])]
    for by in ("gradient", "random"):
        for spread in ("lamp", "erdos-renyi"):
            yield f"Regrow by {by}, {spread}", [ex.Recover(**more, during=[ex.Regrow(sparsity, by=by, spread=spread)])]
    if scratch:
        return
    yield "gradual and Regrow", [ex.Recover(**more, during=[ex.Prune(sparsity), ex.Regrow(0.5, by="gradient")])]
    yield "SoftThreshold", [ex.Recover(**more, terms=[ex.terms.SoftThreshold(sparsity)])]
    yield "L0", [ex.Recover(**more, terms=[ex.terms.L0(sparsity)])]


def fresh(seed: int) -> torch.nn.Module:
    """The network before any training."""
    torch.manual_seed(seed)
    return zoo.build("lenet-300-100").eval()


def zeros(model: torch.nn.Module) -> float:
    """The part of the weights that is exactly zero."""
    found = [weight.read() for weight in sites(model)]
    return sum(int((each == 0).sum()) for each in found) / sum(each.numel() for each in found)


def quality(task: ex.Task, model: Any) -> float:
    """On the validation split."""
    assert task.evaluate is not None
    return float(torch.as_tensor(task.evaluate(model)).mean())


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), "scratch" in sys.argv[3:])
