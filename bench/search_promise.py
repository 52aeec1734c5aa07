"""How often a real search breaks its promise: fresh networks, fresh validation sets, and a file judged on 40,000 other images.

Each seed draws 15,000 images of Fashion-MNIST to train LeNet-300-100 on and 15,000 to choose on, a search with max_drop=0.01
ends, and its file is judged once on the 40,000 that nobody has seen. `python bench/search_promise.py [SEEDS] [TIME]`.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import torch.nn.functional as F

import common
import enxuto as ex
from enxuto import data, zoo
from enxuto.evaluation.quality import paired_change
from enxuto.judging import quality
from enxuto.zoo.training import train

MAX_DROP = 0.01
TRAIN, VALIDATION = 15_000, 15_000
FIRST_SEED = 100  # seeds 0 and 1 were looked at while the search was made


def searched(seed: int, time: str, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """One row: what the search said on its validation images, and what its file loses on all others."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learn, choose, rest = order[:TRAIN], order[TRAIN : TRAIN + VALIDATION], order[TRAIN + VALIDATION :]
    batches = data.batches(x[learn], y[learn], seed=seed)
    torch.manual_seed(seed)
    model = train(zoo.build("lenet-300-100"), batches, epochs=5, seed=seed)
    task = ex.Task(
        model,
        calibration=data.inputs(x[learn[:256]], 64),
        evaluate=data.accuracy(x[choose], y[choose]),
        train=batches,
        loss=F.cross_entropy,
        seed=seed,
    )
    judge = data.accuracy(x[rest], y[rest])
    with tempfile.TemporaryDirectory() as folder:
        result = ex.compress(task, target=ex.Target(max_drop=MAX_DROP), time=time, out=folder)
        change, (low, high), _ = paired_change(quality(judge, model), quality(judge, ex.load(result.artifact, into=model)))
    return {
        "seed": seed,
        "met": result.met,
        "bytes": result.evaluation.compressed.file_bytes,
        "compression": result.evaluation.compression,
        "validation": result.evaluation.quality_change,
        "others": change,
        "interval": f"{low:.4f} ... {high:.4f}",
        "recipes": len(result.history),
        "broken": -change > MAX_DROP,
    }


def main(seeds: int, time: str) -> None:
    """Prints a row a seed and writes bench/results/search_promise.json."""
    d = common.dataset()
    x, y = torch.cat([d.train_x, d.validation_x, d.test_x]), torch.cat([d.train_y, d.validation_y, d.test_y])
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        rows.append(searched(seed, time, x, y))
        print(rows[-1], flush=True)
    broken = sum(row["broken"] for row in rows)
    claim = f"{broken} of {seeds} searches of {time} lose more than {MAX_DROP:.0%} on images nobody has seen"
    common.tell("search_promise", claim, rows, samples={"train": TRAIN, "validation": VALIDATION, "others": len(x) - 2 * TRAIN})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2] if len(sys.argv) > 2 else "40 s")
