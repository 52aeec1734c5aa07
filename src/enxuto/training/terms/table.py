"""The explicit table of terms: what `Recover(terms=[...])` and a recipe file may name, and what `ex.terms` holds."""

from __future__ import annotations

from typing import Any

from enxuto.training.terms.attention import Attention
from enxuto.training.terms.contrast import Contrast
from enxuto.training.terms.decoupled import Decoupled
from enxuto.training.terms.features import Features
from enxuto.training.terms.group_lasso import GroupLasso
from enxuto.training.terms.l0 import L0
from enxuto.training.terms.logits import Logits
from enxuto.training.terms.rate import Rate
from enxuto.training.terms.relations import Relations
from enxuto.training.terms.slimming import Slimming
from enxuto.training.terms.soft_threshold import SoftThreshold
from enxuto.training.terms.token_relations import TokenRelations
from enxuto.training.terms.tokens import Tokens

__all__ = [  # noqa: RUF022 -- as `sorted` has them
    "Attention",
    "Contrast",
    "Decoupled",
    "Features",
    "GroupLasso",
    "L0",
    "Logits",
    "Rate",
    "Relations",
    "Slimming",
    "SoftThreshold",
    "TokenRelations",
    "Tokens",
]

TERMS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Attention,
        Contrast,
        Decoupled,
        Features,
        GroupLasso,
        L0,
        Logits,
        Rate,
        Relations,
        Slimming,
        SoftThreshold,
        TokenRelations,
        Tokens,
    )
}
