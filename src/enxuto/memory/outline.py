"""A profile in brief: few enough moments for a page or a file of figures, the fullest of all among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from enxuto.errors import RangeError
from enxuto.memory.profile import Profile

MOST_MOMENTS = 300


@dataclass(frozen=True)
class Outline:
    """Plain data of a profile: `at` the moments that were kept, where they are, bytes by category, layers at the peak.

    `peak` is the place of the fullest moment in these lists, `moments` how many there were; `layers` holds
    (layer, category, bytes) at the peak, the largest layer first.
    Shapes: at, phases, paths, operators and each category [kept].
    """

    moments: int
    peak: int
    peak_bytes: int
    at: tuple[int, ...]
    phases: tuple[str, ...]
    paths: tuple[str, ...]
    operators: tuple[str, ...]
    bytes: Mapping[str, tuple[int, ...]]
    layers: tuple[tuple[str, str, int], ...]


def outline(profile: Profile, most: int = MOST_MOMENTS) -> Outline:
    """At most so many moments of a profile; each is the fullest of its stretch, so no peak is lost.

    Raises: RangeError when `most` is less than 1.
    """
    if most < 1:
        raise RangeError(f"most={most} keeps no moment; use at least 1.")
    total = profile.total_bytes
    edges = np.linspace(0, len(total), min(most, len(total)) + 1).astype(int)
    kept = [int(first + total[first:last].argmax()) for first, last in itertools.pairwise(edges)]
    moments = [profile.moments[at] for at in kept]
    return Outline(
        moments=len(total),
        peak=kept.index(profile.peak),
        peak_bytes=profile.peak_bytes,
        at=tuple(kept),
        phases=tuple(moment.phase for moment in moments),
        paths=tuple(moment.path for moment in moments),
        operators=tuple(moment.operator for moment in moments),
        bytes={category: tuple(map(int, line[kept])) for category, line in profile.timeline.items()},
        layers=tuple((path, category, size) for path, parts in profile.by_layer.items() for category, size in parts.items()),
    )
