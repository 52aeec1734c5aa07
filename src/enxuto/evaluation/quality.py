"""How good a network is, and how much it changed: one value per sample where possible, so that differences are paired.

Without labels the quality is agreement with the original's own outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from enxuto.errors import Error, TaskError
from enxuto.evaluation.measurement import Interval
from enxuto.task import Batch, Evaluate, evaluating, finite_answers

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Agreement:
    """Quality as agreement with outputs recorded before: calling it with a model gives one value in 0...1 per sample.

    The batches and the original's outputs are kept, not the original: it can be sent to another process.
    """

    batches: tuple[Batch, ...]
    outputs: tuple[Tensor, ...]

    def __call__(self, model: nn.Module) -> Tensor:
        with evaluating(model):
            found = [output.detach().cpu() for output in finite_answers(model, self.batches)]
        return torch.cat([agree(before, after) for before, after in zip(self.outputs, found, strict=True)])


def agreement(original: nn.Module, batches: Iterable[Batch]) -> Evaluate:
    """A quality that needs no labels: how far a model gives the first output that the original gave on these batches.

    See `agree` for the value of a sample. Raises: TaskError when there is no batch or an output holds no tensor.
    """
    kept = tuple(batches)
    if not kept:
        raise TaskError("agreement needs sample inputs and calibration holds no batch; give at least one.")
    with evaluating(original):
        outputs = tuple(output.detach().cpu().clone() for output in finite_answers(original, kept))
    return Agreement(kept, outputs)


def agree(before: Tensor, after: Tensor) -> Tensor:
    """Agreement of each sample, 1 where outputs are equal.

    Float outputs [samples, classes >= 2]: 1 where the largest class is the same, else 0. Integer outputs: the share
    of equal entries. Any other float output: one minus the squared error over the squared original, not below 0.
    Shapes: [samples, ...] twice -> float64 [samples]; an output without axes is one sample.
    Raises: TaskError when the shapes differ.
    """
    if before.shape != after.shape:
        raise TaskError(
            f"the model returns {tuple(after.shape)} where the original returned {tuple(before.shape)}; "
            "agreement compares outputs of one shape, so give evaluate= instead."
        )
    if before.is_floating_point() and before.dim() == 2 and before.shape[1] >= 2:
        return (before.argmax(1) == after.argmax(1)).double()
    one, other = (tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1) for tensor in (before, after))
    if not (before.is_floating_point() or before.is_complex()):
        return (one == other).double().mean(1)
    kind = torch.complex128 if before.is_complex() else torch.float64
    size = one.to(kind).abs().square().sum(1)
    error = (one.to(kind) - other.to(kind)).abs().square().sum(1)
    relative = torch.where(size > 0, error / size, (error > 0).double())
    return (1 - relative).clamp(0, 1)


def quality(evaluate: Evaluate, model: nn.Module) -> Tensor:
    """What `evaluate` says of a model, checked: one number (0-d) or one value per sample [samples], float64.

    The model is in eval mode and without gradients. Raises: TaskError when evaluate fails, changes the model, or returns
    nothing, more than one axis, or values that are not finite.
    """
    before = _versions(model)
    try:
        with evaluating(model):
            value = evaluate(model)
    except Error:
        raise
    except Exception as error:
        raise TaskError(
            f"evaluate failed on {type(model).__name__} ({type(error).__name__}: {error}); it gets a model only "
            "and must use nothing of it but calling it: exported files are evaluated with it too."
        ) from error
    edited = [path for path, version in _versions(model).items() if before.get(path, version) != version]
    if edited:
        raise TaskError(f"evaluate changed the weights of the model ('{edited[0]}'); it must only call it: work on a copy.")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.as_tensor(value)
    if not isinstance(value, (Tensor, Real)) or (isinstance(value, Tensor) and value.is_complex()):
        kind = getattr(value, "dtype", type(value).__name__)
        raise TaskError(f"evaluate returned {kind}; return one number, or a tensor of real numbers, one per sample.")
    values = torch.as_tensor(value).detach().cpu().double()
    if values.dim() > 1 or values.numel() == 0:
        raise TaskError(f"evaluate returned shape {tuple(values.shape)}; return one number, or one value per sample [samples].")
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise TaskError(f"evaluate returned {bad} NaN or infinite values of {values.numel()}; check the model's outputs.")
    return values


def _versions(model: nn.Module) -> dict[str, int]:
    """How often each parameter was written to; torch counts."""
    return {path: tensor._version for path, tensor in model.named_parameters() if not tensor.is_inference()}


def paired_change(before: Tensor, after: Tensor) -> tuple[float, Interval, int]:
    """Mean of after - before, its 95 % interval, and the number of samples it rests on.

    0/1 values: the adjusted Wald interval for paired proportions, which does not shrink to nothing when no sample
    changed. Other values: Student's t on the differences. A single number has no spread: the interval is None and the
    count 0; it is None for fewer than two samples too.
    Shapes: [samples] or [] twice. Raises: TaskError when the two differ in shape.
    Source: D. G. Bonett, R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", J. Educ. Behav. Stat. 37 (2012), eq. 3.
    """
    if before.shape != after.shape:
        raise TaskError(
            f"evaluate returned {tuple(after.shape)} values for one model and {tuple(before.shape)} for another; "
            "it must use the same samples in the same order every time."
        )
    change = float(after.double().mean() - before.double().mean())
    samples = before.numel()
    if before.dim() == 0:
        return change, None, 0
    if samples < 2:
        return change, None, samples
    difference = after.double() - before.double()
    if _is_binary(before) and _is_binary(after):
        return change, _proportions(int((difference > 0).sum()), int((difference < 0).sum()), samples), samples
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    half = float(stdtrit(samples - 1, (1 + CONFIDENCE) / 2) * difference.std(correction=1) / math.sqrt(samples))
    return change, (change - half, change + half), samples


def _is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _proportions(gained: int, lost: int, samples: int) -> tuple[float, float]:
    up, down = (gained + 1) / (samples + 2), (lost + 1) / (samples + 2)
    center = up - down
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((up + down - center**2) / (samples + 2))
    return max(-1.0, center - half), min(1.0, center + half)
