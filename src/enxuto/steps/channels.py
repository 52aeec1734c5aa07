"""PruneChannels: whole channels come out, and every layer around them gets physically smaller."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.checks import named, whole, within
from enxuto.copies import separate_
from enxuto.cut import Group, cut_
from enxuto.errors import NothingChangedError, RangeError, TargetError
from enxuto.evidence.gradients import UNREACHED
from enxuto.evidence.pairs import NormPlace, agree_
from enxuto.groups import Groups, find_groups
from enxuto.groups.budget import MacModel, Order, cheapest, order
from enxuto.groups.scores import FloatArray, magnitude, taylor
from enxuto.macs import total_macs
from enxuto.records import Change, Record, reasons
from enxuto.select import Patterns, matches, select
from enxuto.surgery import borrowed, to_float
from enxuto.task import Task, check_call

MULTIPLES = (8, 4, 2, 1)  # measured on ResNet-20 in ONNX Runtime: docs/prune-channels.md
CLOSE = 0.9  # of the goal: fewer MACs left than that are too few, and a finer multiple is tried
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruneChannels:
    """Channels taken out together with everything that makes, follows or reads them; hidden units of LSTM and GRU too.

    `macs` is the fraction of multiply-accumulates left, measured: the units that matter least for the MACs they cost go
    first, over all layers. `sparsity` is the fraction of units that goes in every group instead. With neither, only
    units that are zero for every input come out, and no output changes; they come first in any case.
    What is left of a layer is a multiple of `multiple_of`: runtimes compute odd numbers of channels slower than the full
    layer. Left to itself it is 1, and for a goal in MACs the first of 8, 4, 2 and 1 that comes close to it.
    `layers` must match every layer that writes a group, as coupled layers can only shrink together.
    Raises: RangeError for numbers that make no sense.
    Source: Fang et al. 2023, "DepGraph", for cutting coupled channels together; scores as in `enxuto.groups.scores`.
    """

    macs: float | None = None
    sparsity: float | None = None
    layers: Patterns = "*"
    scores: Literal["taylor", "magnitude"] = "taylor"
    multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.macs is not None and self.sparsity is not None:
            raise RangeError(f"macs={self.macs} and sparsity={self.sparsity} are two goals for one step; give one of them.")
        if self.macs is not None and not within(self.macs, "(0, 1]"):
            raise RangeError(f"{named('macs', self.macs)} is the fraction left and must be in (0, 1]; write 0.5 for half.")
        if self.sparsity is not None and not within(self.sparsity, "[0, 1)"):
            raise RangeError(
                f"{named('sparsity', self.sparsity)} is the fraction that goes and must be in [0, 1); write for example 0.25."
            )
        if self.scores not in ("taylor", "magnitude"):
            raise RangeError(f"scores={self.scores!r} is not known; use 'taylor' or 'magnitude'.")
        if self.multiple_of is not None and not whole(self.multiple_of, 1):
            raise RangeError(f"{named('multiple_of', self.multiple_of)} is not a whole number of at least 1; use 1 or 8.")

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The smaller copy.

        Raises: LayerError when `layers` matches nothing, NothingChangedError when no unit can or needs to go,
        TargetError when the MACs cannot be brought down so far.
        """
        check_call(self, model, task)
        start = time.monotonic()
        select(model, self.layers, lambda module: True)
        found = find_groups(model, task.sample)
        chosen = [index for index, group in enumerate(found.groups) if all(matches(path, self.layers) for path in group.writers)]
        if not chosen:
            raise NothingChangedError(self._nothing("no channels can be cut", found))
        groups = [found.groups[index] for index in chosen]
        plain = to_float(model).eval()
        costs = MacModel(plain, task.sample, groups)
        scores, by, blind = self._scores(plain, groups, task)
        orders, counts = self._chosen(groups, scores, [found.zeros[index] for index in chosen], costs, by)
        if not any(counts):
            raise NothingChangedError(self._nothing("no unit would go", found))
        cuts = [(group, each.units[:count]) for group, each, count in zip(groups, orders, counts, strict=True) if count]
        smaller = borrowed(model)
        cut_(smaller, cuts)
        if any(count > each.free for each, count in zip(orders, counts, strict=True)):
            agree_(smaller, model, _norms(smaller, cuts), task.calibration)
        changes = [_change(group, each, count, by) for group, each, count in zip(groups, orders, counts, strict=True) if count]
        _log.info("%s: %d of %d groups got smaller", self, len(changes), len(found.groups))
        figures = {
            "macs_before": float(costs.before),
            "macs_after": float(total_macs(to_float(smaller), task.sample)),
            "parameters_before": float(sum(p.numel() for p in plain.parameters())),
            "parameters_after": float(sum(p.numel() for p in to_float(smaller).parameters())),
        }
        skipped = (*found.frozen, *blind)
        return separate_(smaller, model), Record(str(self), tuple(changes), skipped, figures, time.monotonic() - start)

    def _scores(self, model: nn.Module, groups: Sequence[Group], task: Task) -> tuple[list[FloatArray], str, list[Change]]:
        """What the units of each group matter, by which scores, and the groups for which those asked for could not be had."""
        exact, blind = self.macs is None and not self.sparsity, []
        if not exact and self.scores == "taylor":
            found = taylor(model, groups, task.calibration, task.seed)
            seen = [each for each in found if each is not None]
            if len(seen) == len(groups):
                return seen, "taylor", []
            unseen = [_path(group) for group, each in zip(groups, found, strict=True) if each is None]
            blind = [Change(path, "channels of all layers scored by magnitude", UNREACHED) for path in unseen]
        return magnitude(model, groups), "magnitude", blind

    def _chosen(
        self, groups: Sequence[Group], scores: Sequence[FloatArray], zeros: Sequence[frozenset[int]], costs: MacModel, by: str
    ) -> tuple[list[Order], list[int]]:
        """The units of each group in the order in which they go, and how many go.

        Raises: TargetError when the MACs cannot be brought down so far.
        """
        if self.macs is None:
            orders = [order(*each, self.multiple_of or 1) for each in zip(groups, scores, zeros, strict=True)]
            part = self.sparsity or 0.0
            return orders, [max(each.free, each.fitting(round(part * len(each.units)))) for each in orders]
        best, left, lowest = None, 0.0, 1.0
        for multiple in (self.multiple_of,) if self.multiple_of else MULTIPLES:
            orders = [order(*each, multiple) for each in zip(groups, scores, zeros, strict=True)]
            counts = cheapest(orders, costs, self.macs * costs.before, per_mac=by == "taylor")
            reached = costs.after(counts) / costs.before
            lowest = min(lowest, reached)
            if left < reached <= self.macs:
                best, left = (orders, counts), reached
            if left >= CLOSE * self.macs:
                break
        if best is None:
            raise TargetError(
                f"macs={self.macs} cannot be reached in the layers {self.layers!r}: with multiple_of={self.multiple_of or 1} "
                f"at least {lowest:.3f} of the MACs are left, in {len(groups)} groups of channels; ask for more than that"
                f"{', use multiple_of=1' if (self.multiple_of or 1) > 1 else ''} or let more layers be cut."
            )
        return best

    def _nothing(self, what: str, found: Groups) -> str:
        cut = ", ".join(f"'{group.writers[0]}'" for group in found.groups[:8])
        return (
            f"{self} would change nothing: {what} of {len(found.groups)} groups of channels ({cut or 'none'}). "
            f"What stays whole: {reasons(found.frozen) or 'nothing'}. Set macs= or sparsity=, or choose other layers."
        )


def _change(group: Group, units: Order, count: int, scores: str) -> Change:
    zero = min(units.free, count)
    why = f"{zero} of them zero for every input" if zero else ""
    if count > zero:
        others = "the others have" if zero else "those that went have"
        why += f"{'; ' if why else ''}{others} the lowest {scores} scores"
    return Change(_path(group), f"kept {group.size - count} of {group.size} channels: {', '.join(group.paths)}", why)


def _path(group: Group) -> str:
    return (group.writers or group.paths)[0]


def _norms(smaller: nn.Module, cuts: Sequence[tuple[Group, Collection[int]]]) -> list[NormPlace]:
    """Every batch norm with running statistics, and which of its channels are left."""
    keeps: dict[str, Tensor] = {}
    for group, units in cuts:
        for part in group.slices:
            if part.name == "running_mean":
                keep = keeps.setdefault(part.path, torch.ones(len(part.unit_of), dtype=torch.bool))
                keep[torch.from_numpy(np.isin(part.unit_of, list(units)))] = False
    norms = [path for path, m in smaller.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    return [NormPlace(path, keeps.get(path)) for path in norms]
