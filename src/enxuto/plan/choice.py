"""Which of the recipes that were tried answers a goal best; where it cannot be met whole, what may be lost comes first."""

from __future__ import annotations

import math


def rank(drop: float, size: int, *, allowed: float, limit: float) -> tuple[float, float, float]:
    """Smaller is better: what is lost beyond the drop allowed, then the bytes beyond the limit, then what is still free.

    So a goal out of reach ends at the smallest file within the drop; where none is within it, at the one that loses least.
    Units: `drop` and `allowed` of quality, chance included; `size` and `limit` bytes; what was not asked for is infinite.
    >>> rank(0.3, 900, allowed=0.2, limit=400) > rank(0.1, 2000, allowed=0.2, limit=400)
    True
    """
    return (max(0.0, drop - allowed), max(0.0, size - limit), float(size) if math.isinf(limit) else drop)
