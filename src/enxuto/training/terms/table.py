"""The explicit table of terms: what `Recover(terms=[...])` and a recipe file may name, and what `ex.terms` holds."""

from __future__ import annotations

from typing import Any

from enxuto.training.terms.features import Features
from enxuto.training.terms.rate import Rate

__all__ = ["Features", "Rate"]

TERMS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Features, Rate)}
