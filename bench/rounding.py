"""Four, three and two bits without training: what rounding by the data keeps that the nearest values lose.

512 samples without labels. Quality is that of the test split, at settings that nobody chose by it (of the validation split for
the digits, which have no test apart); the distance is how far outputs moved on those samples, of their variance. "tuned" is what
`Tune` makes of what was rounded by the data, by the same samples. `python bench/rounding.py resnet-8 "3 bits, a scale a channel"`
runs a part, whose rows take the place of those that are there.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import common
import enxuto as ex
from enxuto.calls import evaluating, float_outputs
from enxuto.functional.likeness import Spread
from file_coders import NETWORKS, network

CLAIM = "rounding by the data keeps what the nearest values lose, at the same bits and without training"
GRIDS: tuple[tuple[str, dict[str, object]], ...] = (
    ("4 bits, a scale a channel", {"bits": 4}),
    ("3 bits, a scale a channel", {"bits": 3}),
    ("2 bits, a scale a channel", {"bits": 2}),
    ("4 bits, groups of 64", {"bits": 4, "per": "group"}),
    ("3 bits, groups of 64", {"bits": 3, "per": "group"}),
    ("16 values a tensor", {"bits": 4}),
    ("8 values a tensor", {"bits": 3}),
    ("4 values a tensor", {"bits": 2}),
)


def main(names: list[str]) -> None:
    """Every network on every grid, rounded either way; or those that are named."""
    torch.set_num_threads(1)
    found = common.known("rounding")
    grids = [each for each in GRIDS if each[0] in names] or GRIDS
    for name in [name for name in names if name in NETWORKS] or list(NETWORKS):
        model, task = network(name)
        judge = task.test or task.evaluate
        assert judge is not None
        whole = _mean(judge(model))
        for grid, sizes in grids:
            row: dict[str, object] = {"network": name, "way": grid, "original": whole, "_commit": common.commit()}
            for rounding in ("nearest", "gptq"):
                kind = ex.Share if "values" in grid else ex.Quantize
                started = time.process_time()
                small, _ = kind(rounding=rounding, **sizes)(model, task)  # type: ignore[arg-type]
                row[f"seconds {rounding}"] = time.process_time() - started
                row[f"drop {rounding}"] = whole - _mean(judge(small))
                row[f"distance {rounding}"] = _distance(model, small, task)
                row[f"bytes {rounding}"] = _bytes(small, model)
            started = time.process_time()
            tuned = common.done(ex.Tune(), small, task)
            row |= {
                "seconds tuned": time.process_time() - started,
                "given up": tuned is small,
                "drop tuned": whole - _mean(judge(tuned)),
            }
            row |= {"distance tuned": _distance(model, tuned, task), "bytes tuned": _bytes(tuned, model)}
            found[name, grid] = row
            print(row, flush=True)
            common.tell(
                "rounding", CLAIM, sorted(found.values(), key=lambda each: list(NETWORKS).index(each["network"])), quiet=True
            )


def _mean(quality: object) -> float:
    return float(torch.as_tensor(quality).float().mean())


def _distance(model: nn.Module, small: nn.Module, task: ex.Task) -> float:
    """The mean squared change of the outputs, of their variance."""
    with evaluating(model), evaluating(small):
        before, after = ([float_outputs(each, batch)[0] for batch in task.calibration] for each in (model, small))
    spread = Spread.of(before)
    return float(torch.cat([spread.errors(*pair).flatten() for pair in zip(before, after, strict=True)]).mean())


def _bytes(small: nn.Module, model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.nxt"
        ex.save(small, path, original=model)
        return path.stat().st_size


if __name__ == "__main__":
    main(sys.argv[1:])
