"""How far outputs move with each weight, to first order: gradients of the outputs, or of the labels that the model would give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, batch_size
from enxuto.calls import attempt, check_finite_answer, differentiating, slow_attention
from enxuto.evidence.samples import in_parts
from enxuto.functional.likeness import class_axis, probabilities
from enxuto.outputs import output_tensors
from enxuto.progress import counted
from enxuto.sites import Site
from enxuto.surgery import to_float

PASSES = 32  # over a batch; 128 kept 0.5 points more or less on ResNet-8 without channels, no trend
UNREACHED = "no gradient of the outputs reaches it: they do not depend on it, or it runs under no_grad or behind detach"
TOO_LARGE = "the squares of its gradients are too large for 32 bits"

Of = Literal["outputs", "labels"]


def squared_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    weights: Sequence[Site],
    seed: int = 0,
    of: Of = "outputs",
    *,
    units: Mapping[str, float] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean over the samples of the squared gradient by each value of these weights; and of weights without any, why.

    Of all outputs together, |∂f/∂w|², or of -log p(label) for labels drawn from the classes that the model gives (the diagonal
    of its Fisher information). With `units` only of the outputs that it names, each times its unit. Takes the memory of the
    weights once, and what `in_parts` says.
    Shapes: float32, as the weight. Raises: TaskError when the model fails on a batch.
    """
    plain = to_float(model).eval().requires_grad_(False)
    sums: dict[str, Tensor] = {}
    for weight in weights:
        tensor = plain.get_parameter(weight.key).requires_grad_()
        tensor.register_post_accumulate_grad_hook(lambda tensor, key=weight.key: _add_(sums, key, tensor))
    count = 0
    for samples, total in drawn(plain, batches, seed, of, units):
        count += samples
        with differentiating("the calibration batches"):
            total.backward()
    missing = {weight.key: UNREACHED for weight in weights if weight.key not in sums}
    for key, total in list(sums.items()):
        if not bool(total.div_(max(1, count)).isfinite().all()):
            missing[key] = TOO_LARGE
            del sums[key]
    return sums, missing


def _add_(sums: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    """Takes the gradient away from the tensor, so that those of all are never there at once."""
    assert tensor.grad is not None
    gradient, tensor.grad = tensor.grad.float(), None
    if key in sums:
        sums[key].addcmul_(gradient, gradient)
    else:
        sums[key] = gradient.square()


def drawn(
    model: nn.Module, batches: Iterable[Batch], seed: int, of: Of = "outputs", units: Mapping[str, float] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """How many samples went through, and the sum of their outputs with random signs, or of -log p of labels drawn for them.

    The squares of its gradients have the expectation of the sum of the squares over all outputs and samples: signs are
    independent, and the mean gradient of labels that the model itself drew is zero.
    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix", for the signs.
    """
    generator = torch.Generator().manual_seed(seed)
    made = _signed if of == "outputs" else _labelled
    for place, batch in in_parts(model, counted(_cycle(batches, PASSES), "how outputs move", PASSES)):
        with differentiating(place), torch.enable_grad(), slow_attention():
            answer = attempt(model, batch, place)
            check_finite_answer(answer, place)
            outputs = output_tensors(answer)
            sums = [
                made(each, generator) * (1.0 if units is None else units[name])
                for name, each in outputs.items()
                if _counts(each) and (units is None or name in units)
            ]
            total = torch.stack(sums).sum() if sums else None
        del answer, outputs, sums
        if total is not None:
            yield batch_size(batch), total
        del total  # and with it what autograd kept


def _signed(outputs: Tensor, generator: torch.Generator) -> Tensor:
    return (outputs * (torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1)).sum()


def _labelled(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of -log p(label), for a label drawn at each place. Shapes: as `class_axis` says."""
    scores = outputs.movedim(class_axis(outputs.ndim), -1).flatten(0, -2)
    logs = scores.float().clamp_min(torch.finfo().tiny).log() if probabilities(scores) else scores.float().log_softmax(-1)
    labels = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
    return -logs.gather(1, labels).sum()


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _cycle(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    done = 0
    while done < count:
        for batch in batches:
            yield batch
            done += 1
            if done == count:
                return
