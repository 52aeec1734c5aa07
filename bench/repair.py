"""Repair after steps that changed weights: points lost and distance with and without it, no labels, no training.

Samples are the calibration batches without labels: 512, 32 and 3 of them (the steps before see all 512). Quality is that of the
test split (of the validation split for the digits, which have no test apart). It is not blind for lenet-300-100, lenet-5, gru and
resnet-8: how far differences are drawn back was chosen while looking at their test quality; for resnet-20, transformer and lstm
nothing was. The distance is how far outputs moved on the 512 samples, of their variance.
"gains=False" is bias correction as published, and batch norms; "tuned" is `Tune` by the 512, in the place of `Repair`.
`python bench/repair.py resnet-8 "3 bits"` runs a part; its rows take the place of those that are there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

import common
import enxuto as ex
from enxuto.errors import NothingChangedError
from file_coders import NETWORKS, network
from rounding import _distance, _mean

CLAIM = "outputs or statistics that agree again give back most of what was lost, without labels or training"
STEPS: Mapping[str, Sequence[object]] = {
    "50 % zeros in each layer": [ex.Prune(0.5, scores="magnitude", scope="layer")],
    "70 % zeros in each layer": [ex.Prune(0.7, scores="magnitude", scope="layer")],
    "4 bits": [ex.Quantize(bits=4)],
    "3 bits": [ex.Quantize(bits=3)],
    "4 bits, gptq": [ex.Quantize(bits=4, rounding="gptq")],
    "folded, 8 bits a tensor": [ex.Fold(), ex.Quantize(bits=8, per="tensor")],
    "Factorize()": [ex.Factorize()],
}
REPAIRS: Mapping[str, tuple[ex.Repair | ex.Tune, int]] = {
    "repaired": (ex.Repair(), 512),
    "gains=False": (ex.Repair(gains=False), 512),
    "32 samples": (ex.Repair(), 32),
    "3 samples": (ex.Repair(), 3),
    "tuned": (ex.Tune(), 512),
}


def main(names: list[str]) -> None:
    """Every network after every step, or those that are named."""
    torch.set_num_threads(1)
    found = common.known("repair")
    chosen = {words: steps for words, steps in STEPS.items() if words in names} or STEPS
    for name in [name for name in names if name in NETWORKS] or list(NETWORKS):
        model, task = network(name)
        judge = task.test or task.evaluate
        assert judge is not None
        whole = _mean(judge(model))
        for words, steps in chosen.items():
            try:
                small, _ = ex.run(task, list(steps))
            except NothingChangedError:  # no norm to fold
                small, _ = ex.run(task, [step for step in steps if not isinstance(step, ex.Fold)])
            row: dict[str, object] = {"network": name, "way": words, "original": whole, "_commit": common.commit()}
            row |= {"drop": whole - _mean(judge(small)), "distance": _distance(model, small, task)}
            for kind, (step, count) in REPAIRS.items():
                started = time.process_time()
                made = _repaired(small, step, task, count)
                row[f"seconds {kind}"] = time.process_time() - started
                row[f"drop {kind}"] = whole - _mean(judge(made))
                row[f"distance {kind}"] = _distance(model, made, task)
            found[name, words] = row
            print(row, flush=True)
            rows = sorted(found.values(), key=lambda each: list(NETWORKS).index(each["network"]))
            common.tell("repair", CLAIM, rows, quiet=True)


def _repaired(small: nn.Module, step: ex.Repair | ex.Tune, task: ex.Task, count: int) -> nn.Module:
    """The network as `count` samples repair it; as it was where they show nothing."""
    few = torch.cat([batch for batch in task.calibration if isinstance(batch, torch.Tensor)])[:count]
    return common.done(step, small, replace(task, calibration=few.split(64)))


if __name__ == "__main__":
    main(sys.argv[1:])
