"""What became of a goal: each part met or missed by the final measurement, and what would have met it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from enxuto.evaluation.measurement import Evaluation
from enxuto.evaluation.points import is_fraction, points, said
from enxuto.plan.chance import MARGIN, samples_needed
from enxuto.plan.history import Trial
from enxuto.plan.search import Search
from enxuto.sizes import ample_bytes, format_bytes
from enxuto.task import Target

WORTH = 0.9  # of the bytes found: a file that a larger validation set would have allowed is told of when it is so much smaller
MOST = 100  # times the samples there are: more is no advice


@dataclass(frozen=True)
class Verdict:
    """One part of the goal: whether it was met, in words with the numbers."""

    goal: str  # the name of the Target's field
    met: bool
    words: str


def judge(target: Target | None, evaluation: Evaluation) -> tuple[Verdict, ...]:
    """Each part of the goal against what was measured on the files, in the order of Target's fields.

    Where no drop was allowed by name, a network that is no longer the same has missed the goal, and that stands first; so it
    does where no goal was given, which is then all there is.
    """
    original, compressed = evaluation.original, evaluation.compressed
    lines = []

    def add(goal: str, met: bool, words: str) -> None:
        lines.append(Verdict(goal, met, f"{words}: {'met' if met else 'missed'}"))

    if evaluation.ruin and (target is None or target.max_drop is None):
        add("quality", False, evaluation.ruin)
    if target is None:
        return tuple(lines)
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
                f"latency of small.onnx ({compressed.precision}) {left:.1%} of at most {target.latency:.1%}",
            )
    if target.max_drop is not None:
        fraction = is_fraction(original.quality, compressed.quality)
        what = f"quality ({evaluation.quality_name}) {said(evaluation.quality_change, fraction)}"
        met = round(-evaluation.quality_change, 9) <= target.drop
        add("max_drop", met, f"{what}, at most {points(target.drop, fraction)} may be lost")
    return tuple(lines)


def advise(search: Search, verdict: Sequence[Verdict]) -> tuple[str, ...]:
    """Why a goal was missed and what would have met it, from the recipes that were tried; how many validation samples would have
    given more. Empty when there is nothing to say.
    """
    missed = [line.goal for line in verdict if not line.met]
    if not missed:
        return _more_samples(search)
    assert search.end is not None
    advice = [f"the search ended because {search.end.words}, after {len(search.trials)} recipes."]
    best, limit, allowed = search.trials[search.best], search.limit_bytes, search.target.drop
    large = "size" in missed or "compression" in missed
    kept = best.drop <= allowed  # on validation data; then only the final data say otherwise
    fitting = [t for t in search.trials if t.file_bytes <= limit < math.inf]
    if "quality" in missed and limit < math.inf:
        advice.append("no recipe that was tried keeps the network alive in so few bytes: allow more, or say max_drop.")
    elif large and kept:
        where = "within the drop, " if allowed < math.inf else ""
        small, asked = format_bytes(best.file_bytes), ample_bytes(best.file_bytes)
        advice.append(f"{where}the smallest file was {small} ({_lost(search, best)}): ask for {asked}.")
    if fitting and allowed < math.inf and (large or not kept):
        least = min(fitting, key=lambda trial: trial.drop)
        advice.append(
            f"within the size, the best file {_lost(search, least)}{_chance(search, least)}: allow that much with max_drop."
        )
    if "max_drop" in missed and (kept or not fitting):
        found = "within the limit, but not on the final data" if kept else "not within the limit with what chance may add"
        advice.append(f"the drop on {_data(search)} data was {found}: ask for a larger max_drop, or give more samples of them.")
    if "latency" in missed:
        advice.append("the channels were cut until the clock agreed, and now it does not: ask for a little less than you need.")
    if search.task.train is None:
        advice.append("no training data was given: train= and loss= let the network recover, which gains most.")
    elif search.end.cause == "time":
        advice.append(f"more time lets each level train longer: this search had {search.seconds:.0f} s.")
    return (*advice, *_more_samples(search))


def _more_samples(search: Search) -> tuple[str, ...]:
    """What a larger validation set would have allowed: the best file that only the margin for chance kept out."""
    found = search.trials[search.best]
    blocked = [t for t in search.trials if _drop(search, t) < search.target.drop < t.drop and t.file_bytes <= search.limit_bytes]
    if found.drop <= search.target.drop:
        blocked = [t for t in blocked if t.file_bytes < WORTH * found.file_bytes]
    have = search.before.numel() if search.before.ndim else 0
    wanted = [(samples_needed(have, _drop(search, t), t.error, search.target.drop), t) for t in blocked]
    known = [(needed, trial) for needed, trial in wanted if needed is not None and needed <= MOST * have]
    if not known:
        return ()
    needed, trial = min(known, key=lambda pair: pair[1].file_bytes)
    fraction = is_fraction(float(search.before.mean()), trial.quality)
    size, may, allowed = (
        format_bytes(trial.file_bytes),
        points(MARGIN * trial.error, fraction),
        points(search.target.drop, fraction),
    )
    return (
        f"a file of {size} {_lost(search, trial)} on {_data(search)} data, but on {have:,} samples chance may add {may}: "
        f"with {_rounded(needed):,} samples it would have been within {allowed}.",
    )


def _data(search: Search) -> str:
    """The data on which the trials were judged."""
    return "validation" if search.task.evaluate else "calibration"


def _rounded(samples: int) -> int:
    """Up to two digits."""
    size = 10 ** max(0, len(str(samples)) - 2)
    return -(-samples // size) * size


def _drop(search: Search, trial: Trial) -> float:
    return float(search.before.mean()) - trial.quality


def _chance(search: Search, trial: Trial) -> str:
    """What the search takes for lost, where that is more than was measured."""
    if not trial.error:
        return ""
    return f" ({points(trial.drop, is_fraction(float(search.before.mean()), trial.quality))} with what chance may add)"


def _lost(search: Search, trial: Trial) -> str:
    return said(-_drop(search, trial), is_fraction(float(search.before.mean()), trial.quality))
