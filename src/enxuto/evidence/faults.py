"""Named faults: what in a network makes few bits or few digits hurt, found in its weights and in what flows through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from enxuto.evidence.channels import Inputs
from enxuto.evidence.depth import Grown
from enxuto.functional.faults import beyond_neighbours, largest_beside, peak
from enxuto.losses import Fault
from enxuto.sites import Site

OUTLIER = 16.0  # times the middle channel: of 255 codes the middle one has 16 then
PEAK = 16.0  # times the root mean square of a row: at 4 bits a step is as large as two of it then
SATURATED = 1e-3  # of the inputs; 99.99 % is what a percentile range keeps
BY_CHANCE = 16  # values beyond the ends of as many others, one time in thousands
DEAD = 0.05  # of the channels: some rest on few samples by chance
FLOAT16 = 65504 / 4  # a quarter of the largest number of float16: sums of a few such overflow
UNEVEN = 5.0  # times what the neighbours add
FELT = 0.02  # of its output: what a layer must add itself to be named


def input_faults(inputs: Mapping[str, Inputs], layers: Sequence[str]) -> Iterator[Fault]:
    """What is wrong with what flows into these layers."""
    for path in layers:
        if (seen := inputs.get(path)) is None:
            continue
        sizes = seen.sizes
        channel, times = largest_beside(sizes)
        if times > OUTLIER:
            yield Fault(kind="input outliers", path=path, value=times, limit=OUTLIER, channel=channel, total=len(sizes))
        if seen.outside > max(BY_CHANCE, SATURATED * seen.seen):
            share = seen.outside / seen.seen
            yield Fault(kind="saturation", path=path, value=share, limit=SATURATED, count=seen.outside, total=seen.seen)
        dead = int((sizes == 0).sum())
        if dead > DEAD * len(sizes):
            share = dead / len(sizes)
            yield Fault(kind="dead channels", path=path, value=share, limit=DEAD, count=dead, total=len(sizes))


def weight_faults(weights: Sequence[Site]) -> Iterator[Fault]:
    """Rows of weights with a peak."""
    for weight in weights:
        row, times = peak(weight.matrix())
        if times > PEAK:
            yield Fault(kind="weight outliers", path=weight.path, value=times, limit=PEAK, channel=row)


def overflow_faults(inputs: Mapping[str, Inputs], outputs: Mapping[str, Grown]) -> Iterator[Fault]:
    """Layers that meet or give values near the end of float16."""
    for path in dict.fromkeys([*inputs, *outputs]):
        largest = max(inputs[path].largest if path in inputs else 0.0, outputs[path].largest if path in outputs else 0.0)
        if largest > FLOAT16:
            yield Fault(kind="overflow", path=path, value=largest, limit=FLOAT16)


def own_faults(outputs: Mapping[str, Grown], bits: int) -> Iterator[Fault]:
    """Layers whose own error at so many bits is far above that of their neighbours."""
    own = [each.own for each in outputs.values()]
    for path, value, times in zip(outputs, own, beyond_neighbours(own), strict=True):
        if times > UNEVEN and FELT < value < math.inf:
            yield Fault(kind="own error", path=path, value=times, limit=UNEVEN, bits=bits, own=value)
