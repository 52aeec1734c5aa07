"""Batch norm after a cut: its inputs have fewer terms, so their mean and variance have moved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.batches import doubled
from enxuto.cut import Group
from enxuto.errors import TaskError
from enxuto.surgery import borrowed
from enxuto.task import Batch, evaluating, finite_answers

LEAST = 1e-12  # a variance below this is that of a constant channel
Statistics = dict[str, tuple[Tensor, Tensor]]


def refresh_norms_(
    smaller: nn.Module, original: nn.Module, cuts: Sequence[tuple[Group, Collection[int]]], batches: Iterable[Batch]
) -> None:
    """Moves the running statistics of every batch norm by what the cut did to them on the batches, in place.

    Both models run with the statistics of the batches; only their difference counts, so few batches are enough, and a
    cut that changed nothing moves nothing. A statistic that no number holds stays as it is.
    Shapes: as the running statistics of the smaller model.
    """
    wide, narrow = _finite_statistics(original, batches), _finite_statistics(smaller, batches)
    keeps: dict[str, Tensor] = {}
    for group, units in cuts:
        for part in group.slices:
            if part.name == "running_mean":
                keep = keeps.setdefault(part.path, torch.ones(len(part.unit_of), dtype=torch.bool))
                keep[torch.from_numpy(np.isin(part.unit_of, list(units)))] = False
    for path, (mean, variance) in narrow.items():
        norm = smaller.get_submodule(path)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if path not in wide:
            continue
        before_mean, before_variance = wide[path]
        keep = keeps.get(path, torch.ones(len(before_mean), dtype=torch.bool))
        _move_(norm.running_mean, norm.running_mean + (mean - before_mean[keep]))
        _move_(norm.running_var, norm.running_var * (variance.clamp_min(LEAST) / before_variance[keep].clamp_min(LEAST)))


def _move_(statistic: Tensor, moved: Tensor) -> None:
    moved = moved.to(statistic.dtype)
    statistic.copy_(torch.where(torch.isfinite(moved), moved, statistic))


def _finite_statistics(model: nn.Module, batches: Iterable[Batch]) -> Statistics:
    """The statistics, in double precision where the squares of what a layer gives are too large for the model's own."""
    try:
        found = _statistics(borrowed(model), batches)
    except TaskError:  # the outputs overflow with it
        found = {}
    else:
        if all(bool(torch.isfinite(each).all()) for pair in found.values() for each in pair):
            return found
    try:
        return _statistics(borrowed(model).double(), (doubled(batch) for batch in batches))
    except TaskError:  # a model that does not run in double precision
        return found


@torch.no_grad()
def _statistics(model: nn.Module, batches: Iterable[Batch]) -> Statistics:
    """Mean and variance of the inputs of every batch norm that runs, each normalised with them. Shapes: [channels]."""
    found: Statistics = {}
    norms = {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    with evaluating(model):
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        for _ in finite_answers(model, batches):
            pass
    for path, norm in norms.items():
        if norm.num_batches_tracked is not None and int(norm.num_batches_tracked):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            found[path] = (norm.running_mean, norm.running_var)
    return found
