"""Some of the inputs that meet weights: rows drawn evenly from all products on the calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.evidence.moments import seeds
from enxuto.evidence.products import Product, watch

ROWS = 256  # of each weight


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs that rows start...stop of a weight's matrix meet, in equal parts with their own.

    Shapes: inputs [groups, rows, in].
    """

    start: int
    stop: int
    inputs: Tensor

    def matrix(self, matrix: Tensor) -> Tensor:
        """The rows of a weight's matrix that meet them. Shapes: [out, in] -> [groups, rows of a part, in]."""
        return matrix[self.start : self.stop].view(len(self.inputs), -1, matrix.shape[1])


def seen_rows(model: nn.Module, batches: Iterable[Batch], keys: Sequence[str], seed: int = 0) -> dict[str, list[Rows]]:
    """Up to ROWS inputs of each part of the named weights that a product is seen of.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    generators = seeds(keys, seed)
    found: dict[tuple[str, int, int, int], Rows] = {}

    def see(product: Product) -> None:
        place = (product.key, product.start, product.stop, product.groups)
        drawn = torch.randperm(product.count, generator=generators[product.key])[:ROWS].sort().values
        inputs = product.inputs(drawn)
        before = found.get(place)
        if before is None:
            found[place] = Rows(product.start, product.stop, inputs.clone())
            return
        together = torch.cat([before.inputs, inputs], 1)
        if together.shape[1] > 2 * ROWS:
            few = torch.randperm(together.shape[1], generator=generators[product.key])[:ROWS].sort().values
            together = together[:, few]
        found[place] = replace(before, inputs=together)

    watch(model, batches, keys, see)
    made: dict[str, list[Rows]] = {}
    for (key, *_), rows in found.items():
        made.setdefault(key, []).append(rows)
    return made
