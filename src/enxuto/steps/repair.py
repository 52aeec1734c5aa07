"""Repair: the layers of a changed network give again what those of the original give, on average and in spread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from enxuto.checks import check_flags
from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, RangeError
from enxuto.evidence.outputs import Answers
from enxuto.evidence.pairs import NormPlace, OutputPlace, Place, agree_
from enxuto.evidence.places import LEFT, holder, norm_places, output_places
from enxuto.records import Change, Record, reasons
from enxuto.select import Patterns, matches, select
from enxuto.sites import Site
from enxuto.surgery import borrowed
from enxuto.task import Task, check_call

SCALED = 1.5  # times as far as the original's may channels spread by chance or what other steps do to them


@dataclass(frozen=True)
class Repair:
    """Batch norms and biases moved so that mean and spread of each layer agree again with the original's, on the same samples.

    Needs neither labels nor training; put it after the steps that changed weights, and before training if there is any.
    `norms` moves the running statistics of batch norms, `biases` the biases of layers, and `gains` scales the rows of a weight
    beside its bias where mean and spread both moved (plain weights, and codes with a scale for each channel or group). What
    chance may have moved stays: three samples change next to nothing, some hundred do all. The original is that of the task.
    Outputs that would be farther from the original's are given up.
    Raises: RangeError when neither norms nor biases are to move.
    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2; Jordan et
    al. 2023, "REPAIR: renormalizing permuted activations for interpolation repair", for the spread.
    Deviation: every batch is corrected as it flows, so that layers are compared on repaired inputs in a single pass.
    """

    norms: bool = True
    biases: bool = True
    gains: bool = True
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        check_flags(self)
        if not (self.norms or self.biases):
            raise RangeError("norms=False and biases=False leave nothing to repair; let one of them be True.")

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The repaired copy.

        Raises: NothingChangedError when nothing moved by more than chance explains, or outputs would be farther away;
        TaskError when the network fails on a batch.
        """
        check_call(self, model, task)
        start = time.monotonic()
        given, model = model, borrowed(model)
        select(model, self.layers, lambda module: True)
        places, left = self._places(model, task)
        batches = list(task.calibration)  # a loader may shuffle, and all that is compared is compared on the same
        agree_(model, task.model, places, batches)
        left += [Change(place.path, LEFT, place.fault) for place in places if place.fault]
        changes = [_settled_(model, place) for place in places if place.changed]
        if not changes:
            why = f"{len(places)} norms and biases are where the original's are, as far as the samples show"
            why += f" ({reasons(left)})" if left else ""
            raise NothingChangedError(f"{self} would change nothing: {why}; leave the step out, or give more samples.")
        original = Answers(task.model, batches, task.outputs)
        before, after = original.moved(given), original.moved(model)
        if not after <= before:
            raise NothingChangedError(
                f"{self} would change nothing for the better: outputs are {before:.3g} of their spread away from the "
                f"original's and would be {after:.3g}; {_remedy(places)}."
            )
        figures = {"output_error_before": before, "output_error": after}
        return separate_(model, given), Record(str(self), tuple(changes), tuple(left), figures, time.monotonic() - start)

    def _places(self, model: nn.Module, task: Task) -> tuple[list[Place], list[Change]]:
        """What is compared, and what is left alone."""
        paths = [path for path, _ in model.named_modules() if matches(path, self.layers)]
        found: list[Place | Change] = []
        if self.norms:
            found += norm_places(model, task.model, paths)
        if self.biases:
            found += output_places(model, task.model, paths, task.sample, gains=self.gains)
        return [it for it in found if isinstance(it, Place)], [it for it in found if isinstance(it, Change)]


def _remedy(places: Sequence[Place]) -> str:
    """What would work, by whether layers are so far from the original's that they were moved on purpose."""
    found = [(place.path, torch.exp(place.found.stretch / 2)) for place in places if place.found is not None]
    path, spread = max(found, key=lambda pair: float(pair[1].max()))
    if float(spread.max()) < SCALED:
        return "give more samples than these, or leave the step out"
    return (
        f"channels of '{path}' spread {float(spread.min()):.2g} to {float(spread.max()):.2g} times as far as the original's, and "
        "layers cannot be compared where Equalize or others scaled them on purpose: repair before that, or leave the step out"
    )


def _settled_(model: nn.Module, place: Place) -> Change:
    """Puts what was found into the layer for good, and says what it is."""
    found = place.found
    assert found is not None
    mean, spread = float((found.shift / found.spread).square().mean().sqrt()), torch.exp(found.stretch / 2)
    what = (
        f"mean was off by {mean:.2g} of the spread, the spread was {float(spread.min()):.2f} to {float(spread.max()):.2f} times"
    )
    if isinstance(place, NormPlace):
        return Change(place.path, "statistics moved", f"its inputs' {what} the original's")
    assert isinstance(place, OutputPlace)
    layer = holder(model, place.path)
    gain, shift = place.correction()
    bias = Site(place.path, "bias", layer)
    done = "bias moved"
    fitted = bias.settle_(bias.read().double() * gain + shift)
    if place.gains:
        Site(place.path, "weight", layer).scale_(gain)
        done = "bias moved, rows scaled"
    return Change(place.path, f"{done}{fitted}", f"its outputs' {what} the original's")
