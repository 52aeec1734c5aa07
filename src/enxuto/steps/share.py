"""Share: weights share a few values, each weight is the index of one."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import nn

from enxuto.copies import separate_
from enxuto.encode import check_changed, code_biases_, code_weights_, rehearse_biases_on_, rehearse_on_
from enxuto.layers.grids import Grid, check_bits
from enxuto.layers.table import Table
from enxuto.records import Record
from enxuto.rounding import Rounding, check_learned, check_rounding, rounded_by
from enxuto.select import Patterns
from enxuto.sites import left_in_float, sites
from enxuto.surgery import borrowed
from enxuto.task import Task, check_call


@dataclass(frozen=True)
class Share:
    """At most 2^bits values for each weight tensor, placed by exact 1-D k-means; zero stays zero.

    `biases=8` also puts biases and the parameters of norms on affine grids. `rounding="gptq"` takes in place of the nearest
    values those that change the layers' outputs on the calibration batches least.
    Raises: RangeError for bits outside 1..8.
    Source: Han et al. 2016, "Deep Compression", section 3.
    """

    bits: int = 4
    layers: Patterns = "*"
    biases: int | None = None
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        self.grid()
        check_rounding(self.rounding)
        if self.biases is not None:
            check_bits(self.biases, "biases")

    def grid(self) -> Grid:
        """The grid every selected weight gets."""
        return Table(self.bits)

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The copy with shared weights; those that share as few values already keep them.

        Raises: NothingChangedError when all do, and nothing else is asked.
        """
        check_call(self, model, task)
        start = time.monotonic()
        given, model = model, borrowed(model)
        chosen = sites(model, self.layers)
        rounded = rounded_by(self.rounding, given, task, chosen)
        changes, kept = code_weights_(chosen, self.grid(), rounded=rounded)
        if self.biases is not None:
            biases, left = code_biases_(model, self.layers, self.biases, given, task)
            changes, kept = changes + biases, kept + left
        check_changed(self, changes, kept, "use fewer bits")
        skipped = (*kept, *rounded.left(), *left_in_float(model, self.layers))
        return separate_(model, given), Record(
            str(self), tuple(changes), skipped, {"bits": float(self.bits)}, time.monotonic() - start
        )

    def rehearse_(self, model: nn.Module, strength: float) -> None:
        """At full strength the float leaves are seen on their grids, which learn; before that they are only got ready.

        Raises: RecipeError for a rounding by the data.
        """
        check_learned(self, self.rounding)
        rehearse_on_(model, self.layers, self.grid(), now=strength >= 1)
        if self.biases is not None:
            rehearse_biases_on_(model, self.layers, self.biases, now=strength >= 1)
