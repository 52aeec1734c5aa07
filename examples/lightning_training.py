"""Pruning and weight sharing inside a Lightning training: one callback. Runs on digits in seconds; pip install lightning."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto import data, zoo


class Digits(L.LightningModule):
    """An ordinary module: nothing in it knows of compression."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """The loss of a batch."""
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer for all there is."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(epochs: int = 12) -> None:
    """Trains a small network, then trains it again with its compression in view."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    images = data.load("digits")
    loader = data.batches(images.train_x, images.train_y, batch_size=32)
    accuracy = data.accuracy(images.test_x, images.test_y)
    torch.manual_seed(0)
    net = zoo.train(zoo.build("lenet-300-100", image_size=images.image_size), loader, epochs=6)

    task = ex.Task(net, calibration=[images.train_x[:64]])
    compress = ex.lightning.Compress(task, steps=[ex.Prune(sparsity=0.9), ex.Share(bits=4)])
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[compress],
        )
        trainer.fit(Digits(net), loader)

        before, after = Path(folder) / "before.nxt", Path(folder) / "after.nxt"
        ex.save(net, before)
        ex.save(compress.small, after, original=net)
        again = ex.load(after, into=net)
        print(f"{before.stat().st_size:,} bytes, accuracy {float(accuracy(net).mean()):.1%}")
        print(f"{after.stat().st_size:,} bytes, accuracy {float(accuracy(again).mean()):.1%}")


if __name__ == "__main__":
    main()
