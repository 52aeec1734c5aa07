"""Does the planned batch keep its limit in a real process, and the next larger one not? The resident size is watched.

A child process makes the network and trains two steps of the batch, which leaves weights, states and the kernels that oneDNN
makes for new shapes. It gives back what is free, sets the kernel's mark of its largest resident size (VmHWM) to the present
one, and trains two steps more. What the mark rose by, with what tensors held before, is the memory of the step. Beside the
planned batch b and b + 1, the batch that the rule of thumb (weights, states and the outputs of all layers) would have chosen
goes through the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import enxuto as ex
from enxuto import zoo
from enxuto.evaluation.memory import give_back_free_memory, peak_bytes, reset_peak
from enxuto.memory.recording import resident_bytes
from memory_predict import held, rule_of_thumb

CASES: dict[str, tuple[dict[str, int], int, str]] = {
    "resnet-20": ({"in_channels": 3, "image_size": 96}, 96, "400 MB"),
    "mobilenet-v2": ({"in_channels": 3, "image_size": 64}, 64, "600 MB"),
    "transformer": ({"in_channels": 3, "image_size": 112}, 112, "300 MB"),
}
"""Arguments of the network, the side of its images, and the limit for the tensors of a step. Large images, so that a sample takes
much more than the whole pages to which a system rounds each tensor."""
EXACT = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0", "MALLOC_ARENA_MAX": "1"}
"""glibc's allocator gives every larger block pages of its own and takes them back at once: what is alive is measured, not what is
kept for later."""
Row = dict[str, Any]


def main() -> None:
    """One table."""
    rows = [row for name in CASES for row in rows_of(name)]
    common.tell("memory_plan", "the planned batch keeps its limit in a watched process and the next larger one does not", rows)


def rows_of(name: str) -> list[Row]:
    """The planned batch, the next, and the one that the rule of thumb would have chosen."""
    limit = CASES[name][2]
    model, batch = network(name, 2)
    plan = ex.memory.plan(model, batch, limit, loss=F.cross_entropy)
    slope = rule_of_thumb(model, batch[0][:1], 3)
    growth = rule_of_thumb(model, batch[0], 3) - slope
    thumb = (plan.limit_bytes - slope) // growth + 1
    sizes = {"planned": plan.largest_batch, "planned + 1": plan.largest_batch + 1, "rule of thumb": thumb}
    return [
        {"network": name, "limit": limit, "chosen by": which, "batch": size, **trial(name, size, plan.limit_bytes)}
        for which, size in sizes.items()
    ]


def network(name: str, samples: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The network with a batch."""
    sizes, side, _ = CASES[name]
    torch.manual_seed(common.SEED)
    return zoo.build(name, **sizes), (torch.randn(samples, 3, side, side), torch.randint(0, 10, (samples,)))


def trial(name: str, size: int, limit_bytes: int) -> Row:
    """What a child process needed."""
    done = subprocess.run(
        [sys.executable, __file__, name, str(size)], capture_output=True, text=True, check=True, env={**os.environ, **EXACT}
    )
    needed = int(done.stdout.splitlines()[-1])
    return {"measured MB": needed / 1e6, "fits": needed <= limit_bytes}


def child(name: str, size: int) -> None:
    """Prints the bytes that a training step of this process needed."""
    torch.set_num_threads(1)
    model, (x, y) = network(name, size)
    optimizer = torch.optim.Adam(model.parameters())

    def steps() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    steps()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    alive = held([*model.parameters(), *model.buffers(), *states, x, y])
    give_back_free_memory()
    reset_peak()
    before = resident_bytes()
    steps()
    print(peak_bytes() - before + alive)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        child(sys.argv[1], int(sys.argv[2]))
