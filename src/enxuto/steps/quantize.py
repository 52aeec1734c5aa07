"""Quantize: weights, and if asked the inputs of layers, on affine grids of 1 to 8 bits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from enxuto.checks import named, within
from enxuto.copies import separate_
from enxuto.encode import (
    check_changed,
    code_biases_,
    code_weights_,
    input_ranges,
    rehearse_biases_on_,
    rehearse_on_,
    round_inputs_,
)
from enxuto.errors import RangeError, RecipeError
from enxuto.evidence.histograms import Ranges, check_ranges, product_ranges
from enxuto.layers.activations import check_activations
from enxuto.layers.affine import Affine, Per
from enxuto.layers.coded import plain_class, weight_names
from enxuto.layers.grids import Grid, check_bits
from enxuto.layers.traits import traits
from enxuto.records import Change, Record
from enxuto.rounding import Rounding, check_learned, check_rounding, rounded_by
from enxuto.select import Patterns, matches
from enxuto.sites import left_in_float, sites
from enxuto.surgery import borrowed
from enxuto.task import Task, check_call

GROUP = 64  # weights that share a scale, unless asked otherwise


@dataclass(frozen=True)
class Quantize:
    """Weights as integers of `bits` bits with a scale per channel, group or tensor; the copy is physically smaller.

    `per="network"` gives all weights one scale: layers of small weights then take few of the codes, and the file is far
    smaller, as its coder leaves out what is not used; best with `fit="absmax"`. `activations=8` also calibrates the inputs of
    Linear and convolution layers, which integer speed needs; the record names the layers whose inputs stay float. `biases=8`
    codes biases and the parameters of norms too. `fit="mse"` clips where that lowers the error; "absmax" never clips.
    A layer whose inputs `group` does not divide gets the next smaller group that does, or a scale per channel; a weight that
    `Share` put on no more values than 2^bits keeps them. The record names both. `rounding="gptq"` takes in place of the nearest
    codes those that change the layers' outputs on the calibration batches least; the grid stays. `ranges` of inputs:
    "minmax" is all that was seen, "percentile" 99.99 % of it, "mse" what costs inputs least squared error; "best" is all, unless
    another range at least halves the error of the layer's products.
    `tolerance` takes the place of bits: one scale a tensor, so that a step of any value in the network moves the outputs by this
    fraction of their spread, about 0.0003 (0.001 is a small file, 0.0001 a careful one). Best with "gptq": neighbours answer
    errors, so that steps are larger. Whole networks are smallest like this.
    Raises: RangeError for bits outside 1..8, activations other than 8, or a tolerance beside bits, per, group or fit;
    for group without per="group", and ranges without activations.
    Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference";
    for "gptq" Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative pre-trained transformers".
    """

    bits: int = 8
    layers: Patterns = "*"
    per: Per | Literal["network"] = "channel"
    group: int = GROUP
    activations: int | None = None
    biases: int | None = None
    fit: Literal["mse", "absmax"] = "mse"
    rounding: Rounding = "nearest"
    ranges: Ranges = "best"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        self._check_tolerance()
        if self.per not in (*get_args(Per), "network"):
            raise RangeError(f"per={self.per!r} is not known; use 'channel', 'group', 'tensor' or 'network'.")
        self.grid()
        check_rounding(self.rounding)
        check_ranges(self.ranges)
        if self.biases is not None:
            check_bits(self.biases, "biases")
        check_activations(self.activations)
        self._check_told()

    def _check_told(self) -> None:
        """Raises: RangeError for what says how something is to be done that was not asked for."""
        if self.per != "group" and self.group != GROUP:
            raise RangeError(f"group={self.group} is for per='group', not per={self.per!r}; leave it out, or say per='group'.")
        if self.activations is None and self.ranges != "best":
            raise RangeError(
                f"ranges={self.ranges!r} is for activations=8, and inputs stay float; leave it out, or say that too."
            )

    def _check_tolerance(self) -> None:
        if self.tolerance is None:
            return
        if not within(self.tolerance, "(0, 1)"):
            raise RangeError(
                f"{named('tolerance', self.tolerance)} is a fraction of the outputs' spread in (0, 1); use for example 0.0003."
            )
        if (self.bits, self.per, self.group, self.fit) != (8, "channel", GROUP, "mse"):
            raise RangeError(
                f"tolerance={self.tolerance} says how fine each weight's grid is, and so do bits={self.bits}, per={self.per!r}, "
                f"group={self.group} and fit={self.fit!r}; leave these out, or tolerance."
            )

    def grid(self) -> Grid:
        """The grid every selected weight gets; with `tolerance` it is that of weights of which the data say nothing."""
        if self.tolerance is not None:
            return Affine(8, "tensor", fit="absmax")
        return Affine(self.bits, "tensor" if self.per == "network" else self.per, self.group, self.fit)

    @property
    def _together(self) -> bool:
        return self.per == "network"

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The quantized copy. Raises: NothingChangedError when all weights share few enough values and nothing else is asked."""
        check_call(self, model, task)
        start = time.monotonic()
        given, model = model, borrowed(model)
        ranges = self._ranges(model, task)
        chosen = sites(model, self.layers)
        rounded = rounded_by(self.rounding, given, task, chosen, self.tolerance)
        changes, kept = code_weights_(chosen, self.grid(), together=self._together, rounded=rounded)
        if self.biases is not None:
            biases, left = code_biases_(model, self.layers, self.biases, given, task)
            changes, kept = changes + biases, kept + left
        changes += round_inputs_(model, ranges)
        check_changed(self, changes, kept, "use fewer bits, or activations=8 for the inputs")
        skipped = (
            *kept,
            *rounded.left(),
            *left_in_float(model, self.layers),
            *(self._inputs_left(model, task, ranges) if self.activations else ()),
        )
        figures = {"bits": float(self.bits)} if self.tolerance is None else {"tolerance": float(self.tolerance)}
        return separate_(model, given), Record(str(self), tuple(changes), skipped, figures, time.monotonic() - start)

    def calibrate_(self, model: nn.Module, task: Task) -> None:
        """Rounds the inputs of the layers from now on, if asked for, to the ranges that they have now."""
        round_inputs_(model, self._ranges(model, task))

    def _ranges(self, model: nn.Module, task: Task) -> dict[str, tuple[float, float]]:
        return input_ranges(model, task.calibration, self.layers, self.ranges) if self.activations else {}

    def _inputs_left(self, model: nn.Module, task: Task, ranges: dict[str, tuple[float, float]]) -> Iterator[Change]:
        """The layers with weights whose inputs no grid rounds; those of attention, which no hook sees, with their ranges."""
        hidden = [
            each.key for each in sites(model, self.layers) if isinstance(_attention(model, each.path), nn.MultiheadAttention)
        ]
        seen = product_ranges(model, task.calibration, hidden) if hidden else {}
        for path, module in model.named_modules():
            whole = traits(module).looked_up or "input_grid" in module._modules
            if whole or not weight_names(module) or not matches(path, self.layers):
                continue
            if not traits(module).product:
                why = f"only those of Linear and convolution layers are rounded, and this is {plain_class(type(module)).__name__}"
            elif path in ranges:
                why = "its weight is not coded"
            elif isinstance(_attention(model, path), nn.MultiheadAttention):
                why = "attention reads its weight directly, past the layer that would round them"
            else:
                why = "the calibration batches do not reach it"
            for name in weight_names(module):
                if (key := f"{path}.{name}" if path else name) in seen:
                    low, high = seen[key]
                    why += f"; what {name} multiplies was seen from {low:.3g} to {high:.3g}, and int8 exports round it by that"
            yield Change(path, "input left in float", why)

    def rehearse_(self, model: nn.Module, strength: float) -> None:
        """At full strength the float leaves are seen on their grids, which learn; before that they are only got ready.

        Raises: RecipeError for `tolerance` and a rounding by the data, which are of a network as it is.
        """
        check_learned(self, self.rounding)
        if self.tolerance is not None:
            raise RecipeError(
                f"tolerance={self.tolerance} is measured on a trained network; while training use bits=4, or Quantize first."
            )
        rehearse_on_(model, self.layers, self.grid(), now=strength >= 1, together=self._together)
        if self.biases is not None:
            rehearse_biases_on_(model, self.layers, self.biases, now=strength >= 1)


def _attention(model: nn.Module, path: str) -> nn.Module:
    """The layer itself, or for the output projection of attention the attention it belongs to."""
    layer, parent = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    return parent if isinstance(parent, nn.MultiheadAttention) else layer
