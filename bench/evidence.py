"""What it costs to see what every layer of a network of 25 million weights is given: time beside forward passes, and memory.

The network is as ResNet-50 (He et al. 2016), not trained: time and memory do not ask for that. Real images, at 224 pixels. Each
row is a process of its own, of which the peak of memory is read, above what is there when all is imported and gathering was done
once: what runs the batches alone, and what gathers the second moments of every weight in as many passes as its limit makes it
take. The first row is what the others are compared with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

import common
from enxuto.calls import evaluating
from enxuto.evaluation.memory import give_back_free_memory, peak_bytes, reset_peak
from enxuto.evidence.moments import MomentsOf
from enxuto.sites import sites
from enxuto.sizes import module_bytes

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
WIDER = 4
SAMPLES, BATCH = 512, 32


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 beside a way around them."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv(given, width, 1), nn.ReLU(), *conv(width, width, 3, stride), nn.ReLU(), *conv(width, WIDER * width, 1)
        )
        same = given == WIDER * width and stride == 1
        self.around = nn.Identity() if same else nn.Sequential(*conv(given, WIDER * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.around(x))


def conv(given: int, width: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution and its batch norm."""
    return nn.Conv2d(given, width, size, stride, size // 2, bias=False), nn.BatchNorm2d(width)


def network() -> nn.Module:
    """ResNet-50."""
    torch.manual_seed(common.SEED)
    layers: list[nn.Module] = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    given = 64
    for width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(given, width, 1 if block else stride))
            given = WIDER * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 1000)).eval()


class Images:
    """Images of Fashion-MNIST at 224 pixels and in three channels, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.images = common.dataset().train_x[:count]

    def __iter__(self):
        for few in self.images.split(BATCH):
            yield functional.interpolate(few, size=224, mode="bilinear").expand(-1, 3, -1, -1).contiguous()


def one(limit: str, samples: int) -> dict[str, float]:
    """One row: its seconds and the peak of the process, in bytes, above what was there before."""
    torch.set_num_threads(1)
    small = nn.Linear(4, 4)
    assert MomentsOf(small, [torch.randn(8, 4)], sites(small))("weight")  # imports what watches operators
    model, images = network(), Images(samples)
    weights = sites(model)
    give_back_free_memory()
    reset_peak()
    before = peak_bytes()
    started = time.process_time()
    if limit == "forward":
        with evaluating(model):
            for batch in images:
                model(batch)
        passes = 1
    else:
        found = MomentsOf(model, images, weights, None if limit == "default" else int(limit))
        passes = 0
        for weight in weights:
            waiting = len(found.waiting)
            assert found(weight.key), found.missing
            passes += len(found.waiting) < waiting
    return {"seconds": time.process_time() - started, "above": peak_bytes() - before, "passes": passes}


def main(samples: int) -> None:
    """Forward passes alone, then moments within the limit unasked, and within the model and two layers' moments."""
    model = network()
    sizes = sorted((4 * weight.matrix().shape[1] ** 2 for weight in sites(model)), reverse=True)
    rows = []
    for limit in ("forward", "default", str(module_bytes(model) + sum(sizes[:2]))):
        command = [sys.executable, __file__, limit, str(samples)]
        given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # else the peak is that of what was freed as well
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=given_back)
        told = json.loads(done.stdout.splitlines()[-1])
        rows.append({"what": limit, **told})
        rows[-1]["forward passes"] = told["seconds"] / rows[0]["seconds"]
        rows[-1]["memory beyond them"] = told["above"] - rows[0]["above"]
        print(rows[-1], flush=True)
    counted = {"model": module_bytes(model), "two layers": sum(sizes[:2]), "all layers": sum(sizes), "samples": samples}
    common.tell(
        "evidence", "evidence of all layers: under 3 forward passes, within the model and two layers' moments", rows, **counted
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES)
