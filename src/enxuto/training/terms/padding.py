"""Which tokens of a batch count: those that its inputs do not call padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from enxuto.training.objective import Moment
from enxuto.training.terms.between import Distance

MASK = "attention_mask"  # of inputs, as model libraries give them: 1 where a token counts


def counting(distance: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Distance:
    """A distance between hidden states that is told which tokens count."""
    return lambda ours, theirs, moment: distance(ours, theirs, counted(moment, theirs))


def counted(moment: Moment, states: Tensor) -> Tensor | None:
    """Shapes: states [batch, tokens, width] -> [batch, tokens]; None where all tokens count."""
    mask = moment.inputs.get(MASK) if isinstance(moment.inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.shape == states.shape[:2] and not bool(mask.all()) else None
