"""Schedules of the learning rate: the part of it that each update has."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM = 20  # the part of all updates that warms up is one in so many
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4  # of one cycle: the part of all updates that rises, where it begins, where it ends


def cosine(done: int, total: int, warm: int = WARM) -> float:
    """Up in one `warm`th of all updates, then down a cosine. Source: Loshchilov, Hutter 2017, "SGDR", eq. 5, once.

    >>> [round(cosine(done, 100), 2) for done in (0, 2, 4, 50, 99)]
    [0.2, 0.6, 1.0, 0.5, 0.0]
    """
    return min((done + 1) / max(1, total // warm), 0.5 * (1 + math.cos(math.pi * done / total)))


def one_cycle(done: int, total: int) -> float:
    """Up a cosine for three tenths, then down another one to nearly nothing.

    Source: Smith, Topin 2018, "Super-convergence", in the form of torch's OneCycleLR. Deviation: the momentum stays as it is.
    >>> [round(one_cycle(done, 101), 2) for done in (0, 29, 65, 100)]
    [0.04, 1.0, 0.49, 0.0]
    """
    top, last = max(0.0, RISE * total - 1), total - 1
    if done <= top:
        return _between(FIRST, 1.0, done / top if top else 1.0)
    return _between(1.0, LAST, (done - top) / (last - top))


def constant(done: int, total: int) -> float:
    """All of it at every update."""
    return 1.0


def _between(begin: float, end: float, part: float) -> float:
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * part))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": cosine, "one-cycle": one_cycle, "constant": constant}
