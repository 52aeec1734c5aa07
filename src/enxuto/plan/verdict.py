"""What became of a goal: each part met or missed by the final measurement, and what would have met it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from enxuto.evaluation.measurement import Evaluation
from enxuto.plan.history import Trial
from enxuto.plan.search import Search
from enxuto.sizes import format_bytes
from enxuto.task import Target


@dataclass(frozen=True)
class Verdict:
    """One part of the goal: whether it was met, in words with the numbers."""

    goal: str  # the name of the Target's field
    met: bool
    words: str


def judge(target: Target, evaluation: Evaluation) -> tuple[Verdict, ...]:
    """Each part of the goal against what was measured on the files, in the order of Target's fields."""
    original, compressed = evaluation.original, evaluation.compressed
    lines = []

    def add(goal: str, met: bool, words: str) -> None:
        lines.append(Verdict(goal, met, f"{words}: {'met' if met else 'missed'}"))

    if target.size is not None:
        size = compressed.file_bytes
        add("size", size <= int(target.size), f"size {format_bytes(size)} of at most {format_bytes(int(target.size))}")
    if target.compression is not None:
        ratio = evaluation.compression
        add("compression", ratio >= target.compression, f"compression {ratio:.1f}x of at least {target.compression:g}x")
    if target.macs is not None:
        left = compressed.macs / max(1, original.macs)
        add("macs", left <= target.macs + 1e-9, f"MACs {left:.1%} of at most {target.macs:.1%}")
    if target.latency is not None:
        if compressed.latency_ms is None or original.latency_ms is None:
            add("latency", False, "latency could not be measured")
        else:
            left = compressed.latency_ms / original.latency_ms
            add(
                "latency",
                left <= target.latency,
                f"latency {left:.1%} of at most {target.latency:.1%} ({compressed.precision})",
            )
    if target.max_drop is not None:
        drop = round(-evaluation.quality_change, 9) + 0.0  # no minus zero
        words = f"quality ({evaluation.quality_name}) lost {drop:.4f} of at most {target.drop:.4f}"
        add("max_drop", drop <= target.drop, words)
    return tuple(lines)


def advise(search: Search, verdict: Sequence[Verdict]) -> tuple[str, ...]:
    """Why a goal was missed and what would have met it, from the recipes that were tried; empty when all was met."""
    missed = [line.goal for line in verdict if not line.met]
    if not missed:
        return ()
    advice = [f"the search ended because {search.stopped}, after {len(search.trials)} recipes."]
    fitting = [t for t in search.trials if t.file_bytes <= search.limit_bytes]
    good = [t for t, drop in zip(search.trials, search.drops, strict=True) if drop <= search.target.drop]
    if good and search.limit_bytes < math.inf and ("size" in missed or "compression" in missed or "max_drop" in missed):
        least = min(good, key=lambda trial: trial.file_bytes)
        advice.append(
            f"within the drop, the smallest file was {format_bytes(least.file_bytes)} ({_change(search, least)}): ask for that."
        )
    if fitting and search.limit_bytes < math.inf and "max_drop" in missed:
        best = max(fitting, key=lambda trial: trial.quality)
        advice.append(f"within the size, the best file lost {-_drop(search, best):.4f}: allow that much with max_drop.")
    if "max_drop" in missed and search.limit_bytes == math.inf:
        advice.append("the drop on validation data was within the limit, but not on the final data: ask for a smaller max_drop.")
    if "latency" in missed:
        advice.append("the channels were cut until the clock agreed, and now it does not: ask for a little less than you need.")
    if search.task.train is None:
        advice.append("no training data was given: train= and loss= let the network recover, which gains most.")
    elif "time" in search.stopped:
        advice.append(f"more time lets each level train longer: this search had {search.seconds:.0f} s.")
    return tuple(advice)


def _drop(search: Search, trial: Trial) -> float:
    return trial.quality - float(search.before.mean())


def _change(search: Search, trial: Trial) -> str:
    return f"quality {_drop(search, trial):+.4f}"
