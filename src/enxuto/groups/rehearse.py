"""Groups are cut on a copy before anybody cuts them for good.

A forward that writes a size as a literal (`x.view(-1, 800)`) looks innocent in the trace. The proof is numeric: the cut
model must give the outputs of a model of full size whose readers have zeros in place of the removed columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from enxuto.batches import Batch, doubled, leaves
from enxuto.calls import call, evaluating, repeatable
from enxuto.copies import separate_
from enxuto.cut import Group, cut_
from enxuto.functional.likeness import largest
from enxuto.sites import held
from enxuto.surgery import borrowed

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
_log = logging.getLogger(__name__)
Cuts = Sequence[tuple[Group, Collection[int]]]


def masked_(model: nn.Module, cuts: Cuts) -> None:
    """Zeros in the columns that read the removed units, in its own weights: the model of full size that a cut must equal."""
    with torch.no_grad():
        for group, units in cuts:
            for part in group.slices:
                if part.reads:
                    index = torch.from_numpy(part.indices(units))
                    held(model, part.address).index_fill_(part.dim, index, 0.0)


def rehearse(model: nn.Module, groups: Sequence[Group], batch: Batch) -> list[tuple[Group, str]]:
    """The groups whose cut fails or changes the outputs, with the reason; all are tried at once, then by halves."""
    if not groups:
        return []
    stage = _Cuts(model, batch)
    failed = faulty(len(groups), lambda chosen: stage.failure([groups[index] for index in chosen]))
    return [(groups[index], why) for index, why in sorted(failed.items())]


def faulty(count: int, fault: Callable[[Sequence[int]], str]) -> dict[int, str]:
    """Which of so many changes do not work, with the reason that `fault` gives for some of them together, empty for none.

    All are tried at once, then by halves; those that work alone and not together are tried one after the other.
    """
    failed: dict[int, str] = {}

    def narrow(indices: list[int]) -> None:
        why = fault(indices)
        if why and len(indices) == 1:
            failed[indices[0]] = why
        elif why:
            narrow(indices[: len(indices) // 2])
            narrow(indices[len(indices) // 2 :])

    narrow(list(range(count)))
    fine = [index for index in range(count) if index not in failed]
    if failed and fine and fault(fine):
        together: list[int] = []
        for index in fine:
            why = fault([*together, index])
            if why:
                failed[index] = why
            else:
                together.append(index)
    return failed


class Stage:
    """A model and its inputs, of which one copy at a time is there in double precision, where it runs so."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch, self.wide = model, doubled(batch), True
        try:
            self.outputs(self.own(borrowed(model)))
        except Exception as error:  # whatever it raises means the same: this model has its own precision
            _log.debug("the rehearsal runs in the model's own precision: %s", error)
            self.batch, self.wide = batch, False

    def own(self, copy: nn.Module) -> nn.Module:
        """The borrowed copy with values of its own, in the precision of the rehearsal."""
        return separate_(copy.double() if self.wide else copy, self.model)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """What it answers to the batch."""
        with evaluating(model), repeatable(model):
            return list(leaves(call(model, self.batch)))


class _Cuts(Stage):
    """The same, on which groups are cut."""

    def failure(self, groups: Sequence[Group]) -> str:
        """Why cutting about a quarter of these groups does not work; empty when it does."""
        cuts = [(group, _some(group, seed)) for seed, group in enumerate(groups)]
        masked = self.own(borrowed(self.model))
        masked_(masked, cuts)
        wanted = self.outputs(masked)
        del masked
        small = borrowed(self.model)
        try:
            cut_(small, cuts)
            got = self.outputs(self.own(small))
        except Exception as error:  # whatever a stranger's forward raises means the same: this cut cannot be
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"forward writes a size as a literal: {first[:160]}"
        for expected, found in zip(wanted, got, strict=True):
            if expected.shape != found.shape:
                return f"without some channels the output is {tuple(found.shape)} and not {tuple(expected.shape)}"
            if not same_numbers(expected, found):
                return "without some channels that nobody reads, the outputs are others: forward depends on their number"
        return ""


def _some(group: Group, seed: int) -> list[int]:
    """About a quarter of the units, at uneven places."""
    count = min(max(1, group.size // 4), group.size - 1)
    return sorted(np.random.default_rng(seed).choice(group.size, count, replace=False).tolist())


def same_numbers(expected: Tensor, found: Tensor) -> bool:
    """True for outputs that differ by no more than rounding."""
    if expected.shape != found.shape:
        return False
    if not expected.is_floating_point():
        return bool((expected == found).all())
    tolerance = TOLERANCE.get(expected.dtype, 1e-2)
    room = tolerance * max(largest(expected), 1e-30)
    return torch.allclose(expected, found, rtol=tolerance, atol=room, equal_nan=True)
