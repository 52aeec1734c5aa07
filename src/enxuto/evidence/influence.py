"""How far outputs move with one weight, of how far they spread over the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn

from enxuto.evidence.gradients import UNREACHED, squared_gradients
from enxuto.evidence.kept import Answer, keep, known
from enxuto.functional.likeness import Spread
from enxuto.outputs import output_tensors
from enxuto.surgery import Weight
from enxuto.task import Batch, evaluating, finite_answers

QUESTION = "influence"


def influence(
    model: nn.Module, batches: Iterable[Batch], weights: Sequence[Weight], seed: int = 0
) -> tuple[dict[str, float], dict[str, str]]:
    """The root of the mean square of what one unit of one value of a weight adds to the outputs, to first order, in units of
    their spread; and of weights that move nothing, why.

    Units: the spread is the root of the summed variance of all outputs over the samples. The mean is over the values of the
    weight and the samples. Raises: TaskError when the model fails on a batch.
    """
    asked = (QUESTION, [weight.key for weight in weights], seed)
    answer = known(model, *asked)
    if answer is not None:
        moved, missing = answer.data
        return moved, missing
    moved, missing = _influence(model, batches, weights, seed)
    keep(Answer([moved, missing], {}), model, *asked)
    return moved, missing


def _influence(
    model: nn.Module, batches: Iterable[Batch], weights: Sequence[Weight], seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    found, missing = squared_gradients(model, batches, weights, seed)
    variance = _variance(model, batches)
    moved = {key: math.sqrt(float(square.double().mean()) / variance) for key, square in found.items()}
    missing |= {key: UNREACHED for key, each in moved.items() if not each}
    return {key: each for key, each in moved.items() if each}, missing


def _variance(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Of all floating-point outputs of a sample together; at least a tiny one."""
    with evaluating(model):
        answers = [output_tensors(outputs) for outputs in finite_answers(model, batches)]
    total = 0.0
    for name in dict.fromkeys(name for each in answers for name in each):
        outputs = [each[name] for each in answers if name in each]
        if outputs[0].is_floating_point():
            values = sum(each.numel() for each in outputs) / sum(len(each) if each.ndim else 1 for each in outputs)
            total += float(Spread.of(outputs).variance.mean()) * values  # type: ignore[union-attr]
    return max(total, 1e-30)
