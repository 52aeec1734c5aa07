"""A training step followed by `memory.watch` takes at most a few times as long, and without it nothing is different.

Steps without, with the watch, with the watch and its view in a terminal, and recorded, in turn; ratios of medians. Batches of 64.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F

import common
from enxuto import memory, zoo

NETWORKS = ("lenet-300-100", "resnet-20", "transformer")
BATCH, ROUNDS, STEPS = 64, 8, 8


class Terminal(io.StringIO):
    """Somewhere to draw the view."""

    def isatty(self) -> bool:
        return True


def main() -> None:
    """One row a network."""
    torch.set_num_threads(1)
    torch.manual_seed(common.SEED)
    rows, samples = [], {}
    for name in NETWORKS:
        times, moments, peaks = _times(name)
        samples[name] = times
        off = median(times["off"])
        row: dict[str, Any] = {"network": name, "operators": moments}
        for way in ("watch", "view", "record"):
            low, _, high = quantiles(times[way], n=4)
            row[way] = median(times[way]) / off
            row[f"{way}_spread"] = f"{low / off:.2f}-{high / off:.2f}"
        row["us_an_operator"] = (median(times["watch"]) - off) / moments * 1e6
        rows.append(row | peaks)
    claim = "a step that is watched: time relative to one that is not (medians), and the peak that was seen beside the prediction"
    common.tell("memory_watch", claim, rows, samples_s=samples)


def _times(name: str) -> tuple[dict[str, list[float]], int, dict[str, int]]:
    """Seconds of single steps in each way, in turn; operators of a step; the peaks that were seen."""
    model = zoo.build(name)
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        return time.perf_counter() - start

    ways: dict[str, Callable[[], list[float]]] = {
        "off": lambda: [step() for _ in range(STEPS)],
        "watch": lambda: _watched(step, model, optimizer, live=False)[0],
        "view": lambda: _watched(step, model, optimizer, live=True)[0],
        "record": lambda: [memory.record(model, (x, y), loss=F.cross_entropy, optimizer=torch.optim.Adam).seconds or 0.0],
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(ROUNDS + 1):
        for way, run in ways.items():
            taken = run()
            if round_:  # the first warms up
                times[way] += taken
    seen = _watched(step, model, optimizer, live=False)[1]
    foreseen = memory.predict(model, (x, y), loss=F.cross_entropy, optimizer=torch.optim.Adam)
    recorded = memory.record(model, (x, y), loss=F.cross_entropy, optimizer=torch.optim.Adam)
    peaks = {"seen": seen.peak_bytes, "predicted": foreseen.peak_bytes, "recorded": recorded.peak_bytes}
    return times, len(seen.profile().moments), peaks


def _watched(step: Any, model: Any, optimizer: Any, *, live: bool) -> tuple[list[float], memory.Watch]:
    with _terminal(), memory.watch(model, optimizer, live=live) as seen:
        return [step() for _ in range(STEPS)], seen


@contextmanager
def _terminal() -> Any:
    before = sys.stderr
    sys.stderr = Terminal()
    try:
        yield
    finally:
        sys.stderr = before


if __name__ == "__main__":
    main()
