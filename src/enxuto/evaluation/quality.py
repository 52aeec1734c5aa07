"""How much a network changed: one value per sample where possible, so that differences are paired.

Without labels the quality is agreement with the original's own outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, batch_size
from enxuto.calls import evaluating, finite_answers
from enxuto.errors import TaskError
from enxuto.evaluation.measurement import Interval
from enxuto.functional.likeness import Spread, log_probabilities, probabilities, same_classes, same_entries
from enxuto.outputs import Kind, Outputs, output_tensors, said_of

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Judged:
    """One output of the original: what it gave on each batch (None where it was not there) and as what it is judged."""

    name: str
    kind: Literal["classes", "values", "entries"]
    batches: tuple[Tensor | None, ...]
    spread: Spread | None  # of values

    def likeness(self, number: int, after: Tensor, rows: int) -> Tensor:
        """How alike what another model gives on batch `number` is: [rows], 0 ... 1. Raises: TaskError when shapes differ."""
        before = self.batches[number]
        assert before is not None
        if before.shape != after.shape:
            raise TaskError(
                f"the model returns {tuple(after.shape)} as output '{self.name}' where the original returned "
                f"{tuple(before.shape)}; agreement compares outputs of one shape, so give evaluate= instead, or "
                f"outputs={{'{self.name}': 'ignore'}}."
            )
        if self.kind == "classes":
            return same_classes(before, after, rows)
        if self.spread is None:
            return same_entries(before, after, rows)
        return self.spread.likeness(before, after, rows)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Quality as agreement with outputs recorded before: calling it with a model gives one value in 0...1 per sample.

    The value of a sample is that of its worst output, so that what is said of the whole holds for every output. An output
    without a row for each sample counts for all samples of its batch.
    The batches and the original's outputs are kept, not the original: it can be sent to another process.
    """

    batches: tuple[Batch, ...]
    names: tuple[tuple[str, ...], ...]  # of all outputs, batch by batch
    judged: tuple[Judged, ...]

    def __call__(self, model: nn.Module) -> Tensor:
        with evaluating(model):
            return torch.cat([self._rows(number, outputs) for number, outputs in enumerate(finite_answers(model, self.batches))])

    def _rows(self, number: int, outputs: Any) -> Tensor:
        """The value of each sample of a batch."""
        found = output_tensors(outputs)
        names = self.names[number]
        if len(found) != len(names):
            raise TaskError(
                f"the model returns {len(found)} tensors where the original returned {len(names)} ({', '.join(names)}); "
                "agreement compares them one by one, so give evaluate= instead."
            )
        if set(found) != set(names):  # an exported file without names
            found = dict(zip(names, found.values(), strict=True))
        here = [(one, one.batches[number]) for one in self.judged]
        shapes = [before.shape for _, before in here if before is not None]
        samples = _samples(self.batches[number], shapes)
        values = torch.ones(samples, dtype=torch.float64)
        for one, before in here:
            if before is not None:
                rows = samples if before.ndim and len(before) == samples else 1
                values = values.minimum(one.likeness(number, found[one.name].detach().cpu(), rows))
        return values


def _samples(batch: Batch, shapes: Sequence[torch.Size]) -> int:
    """How many samples a batch holds: the rows of its first tensor if an output has as many, else those of the first output."""
    given = batch_size(batch) or 1
    rows = [shape[0] for shape in shapes if shape]
    return given if given in rows or not rows else rows[0]


def agreement(original: nn.Module, batches: Iterable[Batch], *, outputs: Outputs | None = None) -> Agreement:
    """A quality that needs no labels: how far a model gives what the original gave on these batches, output by output.

    Each is judged by what `outputs` says it is, else by what it shows: rows that are probabilities, or their logarithms, by
    the largest class; other floats by one minus the squared error relative to how the output varies; integers by equal entries.
    Raises: TaskError when there is no batch, an output holds no tensor, or `outputs` does not fit.
    """
    kept = tuple(batches)
    if not kept:
        raise TaskError("agreement needs sample inputs and calibration holds no batch; give at least one.")
    with evaluating(original):
        found = [output_tensors(answer) for answer in finite_answers(original, kept)]
        tensors = [{name: one.detach().cpu().clone() for name, one in each.items()} for each in found]
    every = {name: tensor for each in reversed(tensors) for name, tensor in each.items()}
    said = said_of(every, outputs)
    judged = tuple(_judged(name, kind, [each.get(name) for each in tensors]) for name, kind in said.items())
    return Agreement(kept, tuple(tuple(each) for each in tensors), judged)


def _judged(name: str, said: Kind | None, batches: Sequence[Tensor | None]) -> Judged:
    here = [tensor for tensor in batches if tensor is not None]
    if not (here[0].is_floating_point() or here[0].is_complex()):
        return Judged(name, "entries", tuple(batches), None)
    shown = all(map(probabilities, here)) or all(map(log_probabilities, here))
    if said == "classes" or (said is None and shown):
        return Judged(name, "classes", tuple(batches), None)
    return Judged(name, "values", tuple(batches), Spread.of(here))


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
