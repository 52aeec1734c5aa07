"""What a quality is worth: that of a network which knows nothing, and whether the original has seen its validation data."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from enxuto.errors import Error
from enxuto.evaluation.points import is_fraction, shown
from enxuto.judging import quality
from enxuto.surgery import duplicate, to_float
from enxuto.task import Evaluate

logger = logging.getLogger(__name__)
FAR = 3.0  # standard errors between validation and test that are no chance
MUCH = 0.02  # of the validation quality: less is what any two sets differ by
MUCH_ALONE = 0.1  # the same for single numbers, of which nobody knows on how many samples they rest


def blank_quality(evaluate: Evaluate, original: nn.Module) -> float | None:
    """The quality of the original with every parameter at zero, which answers the same to everything; None if it has none."""
    blank = duplicate(to_float(original))
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    try:
        return float(quality(evaluate, blank).mean())
    except Error as error:  # a correlation of constant answers, for example
        logger.info("the quality of a network that knows nothing is not known: %s", error)
        return None


def seen_before(validation: Tensor, test: Tensor) -> list[str]:
    """A note when the original is far better on validation data than on the test; none otherwise.

    Shapes: [samples] or [], of one network on either data.
    """
    gap = float(validation.mean() - test.mean())
    error = math.sqrt(sum(float(values.var()) / values.numel() for values in (validation, test) if values.numel() > 1))
    alone = validation.ndim == 0 or test.ndim == 0
    if gap <= FAR * error or gap <= (MUCH_ALONE if alone else MUCH) * abs(float(validation.mean())):
        return []
    means = (float(validation.mean()), float(test.mean()))
    one, other = (shown(mean, is_fraction(*means)) for mean in means)
    return [
        f"the original has {one} on validation data and {other} on the test: it may have been trained on the validation data, "
        "and drops measured there mislead; hold them out of its training."
    ]
