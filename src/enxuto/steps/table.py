"""The explicit table of steps: what a recipe file may name."""

from __future__ import annotations

from typing import Any

from enxuto.steps.channels import PruneChannels
from enxuto.steps.equalize import Equalize
from enxuto.steps.factorize import Factorize
from enxuto.steps.fold import Fold
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.steps.regrow import Regrow
from enxuto.steps.repair import Repair
from enxuto.steps.share import Share
from enxuto.steps.tune import Tune

STEPS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Fold, Equalize, Prune, PruneChannels, Factorize, Quantize, Share, Regrow, Repair, Tune, Recover)
}
