"""How large the inputs are that each value of a weight meets: the diagonal of their second moments, spread over the weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.evidence.moments import Moments, moments
from enxuto.sites import Site


def squared_inputs(
    model: nn.Module, batches: Iterable[Batch], weights: Sequence[Site], seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean square of the input that each value of a weight multiplies; and of weights without any, why.

    Shapes: float32, as the weight; a view where all rows meet the same inputs, which takes next to no memory.
    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    found, missing = moments(model, batches, [weight.key for weight in weights], seed, diagonal=True)
    return {weight.key: _spread(weight, found[weight.key]) for weight in weights if weight.key in found}, missing


def _spread(weight: Site, found: Sequence[Moments]) -> Tensor:
    """As the weight; zero in rows that no product reads where one reads others."""
    rows, width = weight.matrix().shape
    spread = found[0].square[:1].expand(rows, width)
    if len(found) > 1 or len(found[0].square) > 1 or found[0].stop - found[0].start < rows:
        spread = spread.new_zeros(rows, width)
        for each in found:
            for few, square in each.parts():
                spread[few] = square
    return weight.shaped(spread)
