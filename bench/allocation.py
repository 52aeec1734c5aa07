"""Bits by layer against the same bits everywhere, at equal files and at equal quality; no labels, no training.

Both round by the data (`rounding="gptq"`). "bits" shares out 8 to 2 bits, "all" also zeros and ranks. At equal size the
allocation gets the bytes that the sensitivity foresees for the uniform file; "file" is how much larger its own file is. At equal
quality it is the smallest of some allocations whose quality on the *validation* split is not below that of the uniform file, and
the test split is read once for each of the two. The distance is how far outputs moved on the 512 samples, squared, of their
variance. The digits have no test apart: there quality is of the validation split.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import nn

import common
import enxuto as ex
from enxuto.evidence.outputs import Answers
from enxuto.losses import Loss
from enxuto.recipe import line
from file_coders import NETWORKS, network
from rounding import _bytes, _mean

BITS = (8, 7, 6, 5, 4, 3, 2)
UNIFORM = (6, 5, 4, 3, 2)
LEVELS = 24  # allocations between the smallest and the largest file, at even ratios
ROUNDING = "gptq"


@dataclass
class Made:
    """A compressed network and what was measured of it, each when it is first asked for."""

    steps: Sequence[ex.Quantize]
    task: ex.Task
    answers: Answers

    @cached_property
    def model(self) -> nn.Module:
        return ex.run(self.task, list(self.steps))[0]

    @cached_property
    def bytes(self) -> int:
        return _bytes(self.model, self.task.model)

    @cached_property
    def validation(self) -> float:
        assert self.task.evaluate is not None
        return _mean(self.task.evaluate(self.model))

    @cached_property
    def test(self) -> float:
        return _mean(self.task.test(self.model)) if self.task.test else self.validation

    @cached_property
    def distance(self) -> float:
        return self.answers.moved(self.model) ** 2


def main(names: list[str]) -> None:
    """Every network: each number of bits everywhere beside what is shared out. Rows of other networks are kept."""
    torch.set_num_threads(1)
    path = common.RESULTS / "allocation.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    rows: list[dict[str, Any]] = [row for row in kept if row["network"] not in (names or NETWORKS)]
    for name in names or list(NETWORKS):
        model, task = network(name)
        answers = Answers(model, task.calibration)
        whole = Made([], task, answers)
        whole.model = model  # type: ignore[misc]
        found, seconds = _measured(task)
        uniform = {bits: Made([ex.Quantize(bits=bits, rounding=ROUNDING)], task, answers) for bits in UNIFORM}
        for kind, sensitivity in found.items():
            levels = _levels(sensitivity, task, answers)
            for bits, same in uniform.items():
                row = {"network": name, "shared out": kind, "bits": bits, "bytes": same.bytes, "_seconds": seconds}
                row |= _at_size(sensitivity, bits, same, whole) | _at_quality(levels, same, whole)
                rows.append(row)
                print(row, flush=True)
        common.tell("allocation", "bits by layer against the same bits everywhere", rows, median=_summary(rows))


def _measured(task: ex.Task) -> tuple[dict[str, ex.Sensitivity], float]:
    """What each layer loses, by bits alone and by all changes, and the seconds of both."""
    started = time.process_time()
    found = ex.sensitivity(task, bits=[ex.Quantize(bits=each, rounding=ROUNDING) for each in BITS])
    seconds = time.process_time() - started
    layers = [replace(layer, losses=tuple(filter(_is_plain, layer.losses))) for layer in found.layers]
    return {"bits": replace(found, layers=tuple(layers)), "all": found}, seconds


def _is_plain(loss: Loss) -> bool:
    return loss.sparsity is loss.size is None


def _foreseen(sensitivity: ex.Sensitivity, bits: int) -> int:
    """The bytes of a file whose weights all have so many bits."""
    plain = [loss for layer in sensitivity.layers for loss in layer.losses if loss.bits == bits and _is_plain(loss)]
    return sensitivity.rest_bytes + sum(loss.bytes or 0 for loss in plain)


def _levels(sensitivity: ex.Sensitivity, task: ex.Task, answers: Answers) -> list[Made]:
    """Allocations from the smallest to the largest file, each once."""
    low, high = (ex.allocate(sensitivity, loss=loss).bytes for loss in (1e9, 1e-9 + _least(sensitivity)))
    sizes = [round(low * (high / low) ** (at / (LEVELS - 1))) + 1 for at in range(LEVELS)]
    found = {}
    for size in [*sizes, *(_foreseen(sensitivity, bits) for bits in UNIFORM)]:
        steps = ex.allocate(sensitivity, size=size)
        found[repr([*steps])] = Made([*steps], task, answers)
    return [*found.values()]


def _least(sensitivity: ex.Sensitivity) -> float:
    return sum(min(loss.error for loss in layer.losses if loss.error is not None) for layer in sensitivity.layers)


def _at_size(sensitivity: ex.Sensitivity, bits: int, same: Made, whole: Made) -> dict[str, object]:
    """Beside the uniform file an allocation of as many bytes."""
    steps = ex.allocate(sensitivity, size=_foreseen(sensitivity, bits))
    made = Made([*steps], same.task, same.answers)
    return {
        "drop uniform": whole.test - same.test,
        "distance uniform": same.distance,
        "drop allocated": whole.test - made.test,
        "distance allocated": made.distance,
        "foreseen": steps.loss,
        "file": made.bytes / same.bytes,
        "_steps": [line(step) for step in steps],
    }


def _at_quality(levels: Sequence[Made], same: Made, whole: Made) -> dict[str, object]:
    """The smallest allocation that is as good on the validation split, and the one that is as near on the samples."""
    good = [made for made in levels if made.validation >= same.validation]
    near = [made for made in levels if made.distance <= same.distance]
    row: dict[str, object] = {}
    if good:
        best = min(good, key=lambda made: made.bytes)
        row |= {"smaller at equal validation": 1 - best.bytes / same.bytes, "its drop": whole.test - best.test}
    if near:
        row["smaller at equal distance"] = 1 - min(made.bytes for made in near) / same.bytes
    return row


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, object]]:
    """The medians over all networks and bits, and how often the allocation is worse at equal size."""
    found: dict[str, dict[str, object]] = {}
    for kind in dict.fromkeys(row["shared out"] for row in rows):
        mine = [row for row in rows if row["shared out"] == kind]
        found[kind] = {
            name: median(row[name] for row in mine if name in row)
            for name in ("smaller at equal validation", "smaller at equal distance")
        }
        found[kind]["points that it lost more on the test"] = median(
            100 * (row["its drop"] - row["drop uniform"]) for row in mine if "its drop" in row
        )
        found[kind]["cases"] = len(mine)
        found[kind]["farther at equal size"] = sum(row["distance allocated"] > row["distance uniform"] for row in mine)
        found[kind]["more points lost at equal size"] = sum(row["drop allocated"] > row["drop uniform"] for row in mine)
    print(found)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
