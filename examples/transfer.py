"""A trained network learns something new while it is compressed: from the digits 0-4 to 5-9. Runs in seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto import data, zoo

OLD = 5  # classes of the old task; those after it are new


class Net(nn.Module):
    """A body that both tasks share, and a head for one of them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of five classes."""
        return self.head(self.body(x))


def main(epochs: int = 20) -> None:
    """Trains on the old digits, then on the new ones with 90 % of the weights going, and says what became of the old."""
    images = data.load("digits")
    x, y, test_x, test_y = images.train_x, images.train_y, images.test_x, images.test_y
    old, new = y < OLD, y >= OLD
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU())
    trained = zoo.train(Net(body), data.batches(x[old], y[old], batch_size=32), epochs=epochs)

    net = Net(trained.body)  # a new head on the trained body
    old_accuracy = data.accuracy(test_x[test_y < OLD], test_y[test_y < OLD])

    def still_old(model: nn.Module) -> Tensor:
        return old_accuracy(nn.Sequential(model.body, trained.head))

    task = ex.Task(
        net,
        calibration=[x[new][:64]],
        train=data.batches(x[new], y[new] - OLD, batch_size=32),
        loss=F.cross_entropy,
        also={"digits 0-4": still_old},
    )
    prune = ex.Prune(sparsity=0.9)
    small, records = ex.run(task, [ex.Recover(epochs=epochs, teacher=0, during=[prune]), ex.Share(bits=4)])
    accuracy = data.accuracy(test_x[test_y >= OLD], test_y[test_y >= OLD] - OLD)
    print(f"digits 5-9: accuracy {float(accuracy(small).mean()):.1%}")
    print(records[-1].changes[-1].what)


if __name__ == "__main__":
    main()
