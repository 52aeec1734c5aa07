"""How long one call takes in ONNX Runtime, for several files in one interleaved run: on a shared machine only their
ratio means something, and only if every file met the same disturbances.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from enxuto.errors import RangeError
from enxuto.evaluation.fresh import in_fresh_process
from enxuto.evaluation.session import Array, open_session

if TYPE_CHECKING:
    from enxuto.task import Batch

SHORTEST_MS = 2.0  # a sample is the mean of so many calls that it lasts at least this long: clocks and schedulers are coarse
WARM_UP_S = 0.2  # a file; the first calls allocate memory and raise the clock


def latencies(
    paths: Mapping[str, str | os.PathLike[str]], sample: Batch, *, rounds: int = 30, threads: int = 1
) -> dict[str, list[float]]:
    """Milliseconds per call of each file, `rounds` samples a file, measured in a fresh process.

    One row of the sample is used (batch 1; a file with a fixed batch size gets that). In every round each file is
    timed once, in a shuffled order (the same in every run), so that none always follows the same neighbour.
    Units: ms. Raises: RangeError for rounds or threads below 1; ExportError when a file does not run.
    """
    if rounds < 1 or threads < 1:
        raise RangeError(f"rounds={rounds} and threads={threads} must both be at least 1; write rounds=30, threads=1.")
    from enxuto.evaluation.onnxmodel import first_row_arrays  # brings torch, which the fresh process does without

    jobs = {name: (os.fspath(path), first_row_arrays(path, sample)) for name, path in paths.items()}
    return in_fresh_process(_measure, jobs, rounds, threads)


def _measure(jobs: dict[str, tuple[str, dict[str, Array]]], rounds: int, threads: int) -> dict[str, list[float]]:
    calls = {name: _call(path, arrays, threads) for name, (path, arrays) in jobs.items()}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        end = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < end:
            call()
        repeats[name] = max(1, round(SHORTEST_MS / min(_milliseconds(call, 1) for _ in range(5)) + 0.5))
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            samples[name].append(_milliseconds(calls[name], repeats[name]))
    return samples


def _call(path: str, arrays: dict[str, Array], threads: int) -> Callable[[], Any]:
    session = open_session(path, threads=threads)
    return lambda: session.run(None, arrays)


def _milliseconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) * 1e3 / repeats
