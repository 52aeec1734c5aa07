"""Transfer, compressed while it learns: from Fashion-MNIST's classes 0-4 to 5-9, with few samples of the new, at equal zeros and
equal epochs. Which scores choose best, what the trained body is worth, and what is left of the old task.

A body of 784-300-100, trained on all of the classes 0-4; a new head for the classes 5-9 and 1,000 of their images. Accuracy on
the validation split of the new classes, and on that of the old with the old head; nothing is chosen by them, so no test is read.
The median of three seeds (head, images, order) and in brackets all. `python bench/transfer.py`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import enxuto as ex
from enxuto import data, zoo
from enxuto.data import Dataset

SEEDS = (0, 1, 2)
OLD = 5  # classes of the old task
SAMPLES = 1000
EPOCHS = 40
SPARSITIES = (0.9, 0.97)
RATE = 2e-3


class Net(nn.Module):
    """A body and the head of one task."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of five classes."""
        return self.head(self.body(x))


def main() -> None:
    """One table."""
    torch.set_num_threads(1)
    d = common.dataset()
    old = trained(d)
    rows = []
    for sparsity in SPARSITIES:
        for way, steps, start in ways(sparsity, old):
            found = [once(d, old, seed, steps, start) for seed in SEEDS]
            row: dict[str, Any] = {"zeros": sparsity, "way": way}
            for name, values in zip(("new", "old"), zip(*found, strict=True), strict=True):
                row[name] = f"{median(values):.2%} ({min(values):.2%}-{max(values):.2%})"
            rows.append(row)
            print(row, flush=True)
    common.tell("transfer", f"classes 5-9 from {SAMPLES} samples, {EPOCHS} epochs", rows)


def body() -> nn.Module:
    """Without its head."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU())


def trained(d: Dataset) -> Net:
    """The network of the old task."""
    torch.manual_seed(common.SEED)
    here = d.train_y < OLD
    net = zoo.train(Net(body()), data.batches(d.train_x[here], d.train_y[here], seed=common.SEED), epochs=5)
    assert isinstance(net, Net)
    return net


def ways(sparsity: float, old: Net) -> Iterator[tuple[str, Sequence[ex.Step], Callable[[], nn.Module]]]:
    """Each way as a recipe, and the body that it begins with."""

    def learn(**more: Any) -> ex.Recover:
        return ex.Recover(epochs=EPOCHS, learning_rate=RATE, teacher=0.0, **more)

    def same() -> nn.Module:
        return old.body

    if sparsity == SPARSITIES[0]:
        yield "not compressed", [learn()], same
        yield "not compressed, from scratch", [learn()], body
    yield "pruned, then learned", [ex.Prune(sparsity), learn()], same
    yield "learned, then pruned", [learn(), ex.Prune(sparsity)], same
    for scores in ("magnitude", "lamp", "movement"):
        yield f"while it learns, {scores}", [learn(during=[ex.Prune(sparsity, scores=scores)])], same
    held = ex.terms.Features("body")
    yield "the same by lamp, held to the old features", [learn(during=[ex.Prune(sparsity)], terms=[held])], same
    yield "while it learns, lamp, from scratch", [learn(during=[ex.Prune(sparsity)])], body


def once(d: Dataset, old: Net, seed: int, steps: Sequence[ex.Step], start: Callable[[], nn.Module]) -> tuple[float, float]:
    """The accuracy on the new task, and on the old."""
    torch.manual_seed(seed)
    net = Net(start())
    x, y = d.train_x[d.train_y >= OLD], d.train_y[d.train_y >= OLD] - OLD
    few = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    seen, held = d.validation_y >= OLD, d.validation_y < OLD
    before = data.accuracy(d.validation_x[held], d.validation_y[held])
    task = ex.Task(
        net,
        calibration=data.inputs(x[few][:256], 64),
        train=data.batches(x[few], y[few], batch_size=50, seed=seed),
        loss=F.cross_entropy,
        also={"old": lambda model: before(nn.Sequential(model.body, old.head))},
        seed=seed,
    )
    small, records = ex.run(task, steps)
    new = float(data.accuracy(d.validation_x[seen], d.validation_y[seen] - OLD)(small).mean())
    return new, records[-1].figures["also old, after"]


if __name__ == "__main__":
    main()
