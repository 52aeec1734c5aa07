"""Schedules of the learning rate and the average of weights, at equal epochs: what is left of the validation accuracy.

LeNet-300-100 on Fashion-MNIST with 95 % zeros, and with eight shared values beside half zeros, two epochs of `Recover`; three
seeds, which are orders of batches. Points lost against the original on the validation split: the median, the least and the most.
Nothing is chosen on the test, which is not read.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import torch

import common
import enxuto as ex
from enxuto import data
from file_coders import network

EPOCHS, SEEDS = 2, (0, 1, 2)
BEFORE: dict[str, list[ex.Step]] = {"95 % zeros": [ex.Prune(0.95)], "half zeros, 8 values": [ex.Prune(0.5), ex.Share(3)]}
AVERAGE = 0.99  # of some hundred updates
WAYS: dict[str, dict[str, Any]] = {
    f"{schedule}{', averaged' if average else ''}": {"schedule": schedule, "average": average}
    for schedule in ("cosine", "one-cycle", "constant")
    for average in (0.0, AVERAGE)
}


def main() -> None:
    """Each way from each start."""
    torch.set_num_threads(1)
    model, task = network("lenet-300-100")
    d = common.dataset()
    rows: list[dict[str, object]] = []
    for what, steps in BEFORE.items():
        small, _ = ex.run(task, steps)
        before = quality(task, model)
        for way, arguments in WAYS.items():
            lost = []
            for seed in SEEDS:
                train = data.batches(d.train_x, d.train_y, batch_size=128, seed=seed)
                made, _ = ex.Recover(epochs=EPOCHS, **arguments)(small, replace(task, train=train, seed=seed))
                lost.append(100 * (before - quality(task, made)))
            rows.append({"network": what, "way": way, "points lost": median(lost), "from": min(lost), "to": max(lost)})
            print(rows[-1], flush=True)
        common.tell("loop", "the schedule and the average that lose least at equal epochs", rows)


def quality(task: ex.Task, model: torch.nn.Module) -> float:
    """Validation accuracy, 0...1."""
    assert task.evaluate is not None
    return float(torch.as_tensor(task.evaluate(model)).mean())


if __name__ == "__main__":
    main()
