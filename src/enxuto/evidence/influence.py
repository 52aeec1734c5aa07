"""How far outputs move with one weight, of how far they spread over the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn

from enxuto.batches import Batch
from enxuto.calls import evaluating, finite_answers
from enxuto.evidence.gradients import UNREACHED, squared_gradients
from enxuto.evidence.kept import Answer, keep, known
from enxuto.functional.likeness import Spread
from enxuto.outputs import Outputs, output_tensors, said_of
from enxuto.sites import Site

QUESTION = "influence"


def influence(
    model: nn.Module, batches: Iterable[Batch], weights: Sequence[Site], seed: int = 0, outputs: Outputs | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """The root of the mean square of what one unit of one value of a weight adds to the outputs, to first order, in units of
    their spread; and of weights that move nothing, why.

    Units: the spread of an output is the root of the summed variance of its values over the samples; the squares of several
    outputs add up, each in its own spread, without those that `outputs` ignores. The mean is over the values of the weight and
    the samples. Raises: TaskError when the model fails on a batch.
    """
    asked = (QUESTION, [weight.key for weight in weights], seed, outputs)
    answer = known(model, *asked)
    if answer is not None:
        moved, missing = answer.data
        return moved, missing
    moved, missing = moved_by(model, batches, weights, seed, outputs)
    keep(Answer([moved, missing], {}), model, *asked)
    return moved, missing


def moved_by(
    model: nn.Module, batches: Iterable[Batch], weights: Sequence[Site], seed: int = 0, outputs: Outputs | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """The same for these batches, which are looked at anew."""
    variances = _variances(model, batches, outputs)
    least = max(variances.values(), default=0.0) * 1e-12  # an output that never changes has no spread to be told in
    units = {name: 1 / math.sqrt(max(each, 1e-30)) for name, each in variances.items() if each > least or not least}
    found, missing = squared_gradients(model, batches, weights, seed, units=units)
    moved = {key: math.sqrt(float(square.double().mean())) for key, square in found.items()}
    missing |= {key: UNREACHED for key, each in moved.items() if not each}
    return {key: each for key, each in moved.items() if each}, missing


def _variances(model: nn.Module, batches: Iterable[Batch], outputs: Outputs | None) -> dict[str, float]:
    """Of all values of a sample together, for each floating-point output that is judged."""
    with evaluating(model):
        answers = [output_tensors(each) for each in finite_answers(model, batches)]
    found = {}
    for name in said_of(answers[0], outputs) if answers else ():
        given = [each[name] for each in answers if name in each]
        if given[0].is_floating_point():
            values = sum(each.numel() for each in given) / sum(len(each) if each.ndim else 1 for each in given)
            found[name] = float(Spread.of(given).variance.mean()) * values  # type: ignore[union-attr]
    return found
