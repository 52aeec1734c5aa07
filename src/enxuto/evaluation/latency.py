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
    from enxuto.batches import Batch

SHORTEST_MS = 2.0  # a sample is the mean of so many calls that it lasts at least this long: clocks and schedulers are coarse
FINE_S = 1e-5  # a clock that is coarser cannot time a sample
WARM_UP_S = 0.2  # a file; the first calls allocate memory and raise the clock


def latencies(
    paths: Mapping[str, str | os.PathLike[str]], sample: Batch, *, rounds: int = 30, threads: int = 1
) -> dict[str, list[float]]:
    """Milliseconds per call of each file, `rounds` samples a file, measured in a fresh process.

    One row of the sample is used (batch 1; a file with a fixed batch size gets that). In every round each file is
    timed once, in a shuffled order (the same in every run), so that none always follows the same neighbour. With one
    thread the clock is that of the thread: it stands still while other programs have the core.
    Units: ms. Raises: RangeError for rounds or threads below 1; ExportError when a file does not run.
    """
    if rounds < 1 or threads < 1:
        raise RangeError(f"rounds={rounds} and threads={threads} must both be at least 1; write rounds=30, threads=1.")
    from enxuto.evaluation.onnxmodel import first_row_arrays  # brings torch, which the fresh process does without

    jobs = {name: (os.fspath(path), first_row_arrays(path, sample)) for name, path in paths.items()}
    return in_fresh_process(_measure, jobs, rounds, threads)


def _measure(jobs: dict[str, tuple[str, dict[str, Array]]], rounds: int, threads: int) -> dict[str, list[float]]:
    clock = _clock(threads)
    calls = {name: _call(path, arrays, threads) for name, (path, arrays) in jobs.items()}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        end = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < end:
            call()
        repeats[name] = max(1, round(SHORTEST_MS / min(_milliseconds(call, 1, clock) for _ in range(5)) + 0.5))
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            samples[name].append(_milliseconds(calls[name], repeats[name], clock))
    return samples


def _call(path: str, arrays: dict[str, Array], threads: int) -> Callable[[], Any]:
    session = open_session(path, threads=threads)
    return lambda: session.run(None, arrays)


def _clock(threads: int) -> Callable[[], float]:
    """Seconds of this thread where it does all the work and the system counts them finely, else seconds on the wall.

    With two busy programs beside each core a ResNet's 0.21 ms became 0.2 to 2.5 on the wall, and a file 3.2 times as fast
    "24.4 times faster" by the medians.
    """
    own = threads == 1 and time.get_clock_info("thread_time").resolution <= FINE_S
    return time.thread_time if own else time.perf_counter


def _milliseconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) * 1e3 / repeats
