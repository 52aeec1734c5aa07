"""What the checkpointing plan saves and what it costs: activation memory, time and gradients of a training step.

Beside the plan's choice, in the same table and interleaved in time: no checkpoints, the simple rule of checkpointing every block,
and the whole batch in parts (whose gradients are others: sums in another order, and batch norms see parts). Memory is what the
tracker records in real steps; times are medians of whole steps with Adam on one thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import enxuto as ex
from enxuto import zoo
from enxuto.batches import parts
from enxuto.memory.blocks import choices

CASES = {"resnet-20": 64, "transformer": 128}
SAVED = 0.4
PARTS = 8
ROUNDS = 15
Row = dict[str, Any]


def main() -> None:
    """One table."""
    torch.set_num_threads(1)
    claim = "at least 40 % of activation memory saved for at most 35 % more time, gradients identical"
    common.tell("memory_checkpoint", claim, [row for name, size in CASES.items() for row in compared(name, size)])


def compared(name: str, size: int) -> list[Row]:
    """The same training step with the plan's checkpoints, without any, and with all."""
    torch.manual_seed(common.SEED)
    model = zoo.build(name)
    batch = torch.randn(size, 1, 28, 28), torch.randint(0, 10, (size,))
    whole = ex.memory.predict(model, batch, loss=F.cross_entropy, optimizer=torch.optim.Adam)
    planned = option(model, batch, int(whole.peak_bytes - SAVED * whole.activation_bytes), checkpointed=True)
    eighth = {"batch_size": size // PARTS, "accumulation": 2}  # from the second pass on gradients are there
    part = ex.memory.predict(model, batch, loss=F.cross_entropy, optimizer=torch.optim.Adam, **eighth)
    parted = option(model, batch, part.peak_bytes, checkpointed=False)
    blocks = choices(model, whole)
    ways = {
        "none": ((), 1, 1.0),
        "plan": (planned.checkpoint, 1, planned.time),
        "every block": (tuple(it.path for it in blocks), 1, 1 + sum(it.time for it in blocks)),
        f"none, in {parted.accumulation} parts": ((), parted.accumulation, parted.time),
    }
    runs = {way: Run(model, batch, paths, passes) for way, (paths, passes, _) in ways.items()}
    for _ in range(ROUNDS):
        for run in runs.values():
            run.step()
    plain = runs["none"]
    return [
        {
            "network": name,
            "batch": size,
            "checkpoints": way,
            "layers": " ".join(ways[way][0]),
            "activations MB": run.activation_bytes / 1e6,
            "saved": 1 - run.activation_bytes / plain.activation_bytes,
            "time": median(run.seconds) / median(plain.seconds),
            "predicted time": ways[way][2],
            "same gradients": all(map(torch.equal, run.gradients, plain.gradients)),
            "_seconds": run.seconds,
        }
        for way, run in runs.items()
    ]


def option(model: nn.Module, batch: tuple[Tensor, Tensor], limit: int, *, checkpointed: bool) -> Any:
    """The plan's option for a limit, with checkpoints or in parts."""
    found = ex.memory.plan(model, batch, limit, loss=F.cross_entropy).options
    return next(it for it in found if bool(it.checkpoint) == checkpointed)


class Run:
    """One way to train, with its times, memory and first gradients."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], paths: Sequence[str], passes: int) -> None:
        self.model, self.parts = copy.deepcopy(model), parts(batch, passes)
        ex.memory.checkpoint_(self.model, paths)
        profile = ex.memory.record(self.model, self.parts[0], loss=F.cross_entropy, optimizer=torch.optim.Adam)
        self.activation_bytes = profile.activation_bytes
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.model.train()
        self.gather()
        self.gradients = [parameter.grad.clone() for parameter in self.model.parameters()]
        self.seconds: list[float] = []

    def gather(self) -> None:
        """Gradients of the whole batch."""
        for x, y in self.parts:
            (F.cross_entropy(self.model(x), y) / len(self.parts)).backward()

    def step(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.gather()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)


if __name__ == "__main__":
    main()
