"""Pruning and weight sharing inside a training loop of one's own: prepare, train, convert. Runs on digits in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import enxuto as ex
from enxuto import data, zoo

EPOCHS = 6


def main() -> None:
    """Trains a small network, then trains it again with its compression in view."""
    images = data.load("digits")
    loader = data.batches(images.train_x, images.train_y, batch_size=64)
    accuracy = data.accuracy(images.test_x, images.test_y)
    torch.manual_seed(0)
    net = zoo.train(zoo.build("lenet-300-100", image_size=images.image_size), loader, epochs=EPOCHS)

    steps = [ex.Prune(sparsity=0.9), ex.Share(bits=4)]
    model = ex.prepare(ex.Task(net, calibration=[images.train_x[:64]]), steps, gradual=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = ex.Schedule(model, steps, batches=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    small = ex.convert(model)

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.nxt", Path(folder) / "after.nxt"
        ex.save(net, before)
        ex.save(small, after, original=net)
        again = ex.load(after, into=net)
        print(f"{before.stat().st_size:,} bytes, accuracy {float(accuracy(net).mean()):.1%}")
        print(f"{after.stat().st_size:,} bytes, accuracy {float(accuracy(again).mean()):.1%}")


if __name__ == "__main__":
    main()
