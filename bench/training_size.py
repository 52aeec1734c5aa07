"""How small a file is at what loss, by the way it is trained: in one blow, in levels, in one gradual run, and for coded bits.

The same number of epochs in all, the same learning rate at its height, the original as the teacher; each way at three places of
its knob. Points are those lost on the validation split, which the original never saw; nothing is chosen, so no test is read.
`python bench/training_size.py lenet-300-100 8`: a network and the epochs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import common
import enxuto as ex
from enxuto.plan.levels import level_densities
from enxuto.recipe import line
from file_coders import network

DENSITIES = (0.06, 0.03, 0.015)
RATES = (1e-6, 2.5e-6, 6e-6)
TAIL = 0.2  # of the epochs, once values are shared
HIGH, LOW = 2e-3, 3e-4  # learning rates: of a training, and of what follows a coding
FINE = ex.Quantize(bits=8, per="tensor", fit="absmax", biases=6)


def main(name: str, epochs: float) -> None:
    """One table a network."""
    torch.set_num_threads(1)
    model, task = network(name)
    before, rows = _quality(task, model), []
    with tempfile.TemporaryDirectory() as folder:
        for way, steps in ways(epochs):
            started = time.process_time()
            small, _ = ex.run(task, steps)
            path = Path(folder) / "small.nxt"
            ex.save(small, path, original=model)
            seconds = time.process_time() - started
            drop = before - _quality(task, ex.load(path, into=model))
            size, whole = path.stat().st_size, sum(4 * p.numel() for p in model.parameters())
            rows.append({"way": way, "bytes": size, "compression": whole / size, "drop": drop, "seconds": seconds})
            rows[-1]["_steps"] = ", ".join(map(line, steps))
            print(rows[-1], flush=True)
    common.tell(f"training_size_{name}", f"{name}: bytes and points lost after {epochs:g} epochs", rows)


def ways(epochs: float) -> Iterator[tuple[str, Sequence[ex.Step]]]:
    """Each way at each place of its knob."""
    main, tail = round((1 - TAIL) * epochs, 3), round(TAIL * epochs, 3)
    finish = (ex.Share(bits=4, biases=6), ex.Recover(epochs=tail, learning_rate=LOW))
    for density in DENSITIES:
        prune = ex.Prune(round(1 - density, 4))
        yield f"one blow, {density:.1%} left", (prune, ex.Recover(epochs=main, learning_rate=HIGH), *finish)
        levels = level_densities(1.0, density)
        each = ex.Recover(epochs=round(main / len(levels), 3), learning_rate=HIGH)
        steps = [step for left in levels for step in (ex.Prune(round(1 - left, 4)), each)]
        yield f"{len(levels)} levels, {density:.1%} left", (*steps, *finish)
        yield f"gradual, {density:.1%} left", (ex.Recover(epochs=main, learning_rate=HIGH, during=[prune]), *finish)
        both = ex.Recover(epochs=epochs, learning_rate=HIGH, during=[prune, ex.Share(bits=4, biases=6)])
        yield f"gradual with 16 values, {density:.1%} left", (both,)
    for rate in RATES:
        priced = ex.Recover(epochs=epochs, learning_rate=HIGH, teacher=0.9, temperature=1.0, rate=rate)
        yield f"a bit is worth {rate:g}", (FINE, priced)


def _quality(task: ex.Task, model: Any) -> float:
    assert task.evaluate is not None
    return float(torch.as_tensor(task.evaluate(model)).mean())


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
