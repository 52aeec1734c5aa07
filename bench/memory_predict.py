"""How near predicted memory comes to what the allocator reports, and what a prediction itself takes.

Measured is the largest sum of what PyTorch's CPU allocator gave out and took back during a step, read from torch's own
profiler, on top of the weights, states and inputs that were there before; the tracker of enxuto has no part in it. Beside the
prediction, in the same table, stands the rule of thumb that people use: weights, gradients and states, and the outputs of all
layers.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import enxuto as ex
from enxuto import zoo
from enxuto.batches import leaves
from enxuto.memory.recording import allocations

BATCHES = (8, 32, 128)
PRECISIONS = ("32-true", "bf16-mixed")
OPTIMIZERS: dict[str, Any] = {"none": None, "SGD": torch.optim.SGD, "Adam": torch.optim.Adam}
STATES = {"none": 0, "SGD": 1, "Adam": 3}  # copies of the weights that gradients and states take
HUGE = 4096
Row = dict[str, Any]


def main() -> None:
    """One table a kind of step, and one of the cost of a prediction."""
    torch.set_num_threads(1)
    rows = [row(*case) for case in itertools.product(zoo.NAMES, PRECISIONS, BATCHES, OPTIMIZERS)]
    training = [it for it in rows if it["optimizer"] != "none"]
    inference = [it for it in rows if it["optimizer"] == "none"]
    claim = "predicted peak of a training step within 5 % of the measured peak of tensors"
    common.tell("memory_predict_training", claim, training, worst=worst(training))
    common.tell("memory_predict_inference", "predicted peak of an inference within 3 %", inference, worst=worst(inference))
    claim = f"a prediction (batch {HUGE}) takes under 5 s and 200 MB beyond import"
    common.tell("memory_predict_cost", claim, [cost(name) for name in zoo.NAMES])


def worst(rows: Iterable[Row]) -> float:
    """The largest relative error."""
    return max(abs(row["predicted / measured"] - 1) for row in rows)


def row(name: str, precision: Any, size: int, optimizer: str) -> Row:
    """One network, one step."""
    model, batch = zoo.build(name), (torch.randn(size, 1, 28, 28), torch.randint(0, 10, (size,)))
    make = OPTIMIZERS[optimizer]
    loss = None if make is None else F.cross_entropy
    given = batch[0] if loss is None else batch
    profile = ex.memory.predict(model, given, loss=loss, optimizer=make, precision=precision)
    assert profile.predicted, profile.words
    thumb = rule_of_thumb(model, batch[0], STATES[optimizer])
    real = measured(model.train(loss is not None), batch, make, precision)
    return {
        "network": name,
        "precision": precision,
        "batch": size,
        "optimizer": optimizer,
        "measured": real,
        "predicted / measured": profile.peak_bytes / real,
        "rule of thumb / measured": thumb / real,
    }


def measured(model: nn.Module, batch: tuple[Tensor, Tensor], make: Any, precision: str) -> int:
    """Bytes at the fullest moment of the second step."""
    optimizer = None if make is None else make(model.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            if optimizer is None:
                with torch.no_grad():
                    model(batch[0])
                return
            loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    states = [] if optimizer is None else [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    there = [*model.parameters(), *model.buffers(), *states, batch[0], *([] if optimizer is None else [batch[1]])]
    with allocations() as reported:
        step()
    level = itertools.accumulate((change for _, change in reported), initial=0)
    return max(level) + held(there)


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors, shared ones once."""
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def rule_of_thumb(model: nn.Module, images: Tensor, copies: int) -> int:
    """Weights, `copies` of them, inputs, and what every layer without layers inside gives."""
    outputs = 0

    def add(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal outputs
        outputs += held(leaves(output))

    innermost = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(add) for module in innermost]
    model(images)
    for hook in hooks:
        hook.remove()
    weights = sum(it.numel() * it.element_size() for it in [*model.parameters(), *model.buffers()])
    return weights * (1 + copies) + images.numel() * 4 + (outputs if copies else 0)


def cost(name: str) -> Row:
    """Seconds and bytes of one prediction in a process of its own."""
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True, env={**os.environ})
    return {"network": name, **json.loads(done.stdout)}


def cost_here(name: str) -> None:
    """Prints what a first prediction takes once everything is imported."""
    import time

    from enxuto.evaluation.memory import peak_bytes, reset_peak
    from enxuto.memory.prediction import predict
    from enxuto.memory.recording import resident_bytes

    torch.set_num_threads(1)
    model, batch = zoo.build(name), (torch.randn(2, 1, 28, 28), torch.randint(0, 10, (2,)))
    reset_peak()
    before, start = resident_bytes(), time.perf_counter()
    profile = predict(model, batch, loss=F.cross_entropy, optimizer=torch.optim.Adam, batch_size=HUGE)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "MB": (peak_bytes() - before) / 1e6, "predicted MB": profile.peak_bytes / 1e6}))


if __name__ == "__main__":
    run: Callable[[], None] = main if len(sys.argv) == 1 else lambda: cost_here(sys.argv[1])
    run()
