"""`allocate`: from what each layer loses, the steps that lose least within a size, or are smallest within a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from enxuto.artifact.save import save
from enxuto.changes import steps_of
from enxuto.checks import named, within
from enxuto.errors import RangeError, TargetError, TaskError
from enxuto.functional.allocate import Offer, cheapest_steps, knapsack
from enxuto.losses import LayerLosses, Loss, Sensitivity
from enxuto.recipe import from_data, run
from enxuto.sizes import ample_bytes, file_bytes, format_bytes, parse_bytes
from enxuto.steps.quantize import Quantize
from enxuto.task import Step, Task

Choices = Mapping[str, Loss]
"""What each layer gets, by its path."""


class Allocation(list[Step]):
    """A plain list of steps, for `ex.run` and `ex.compress`, that also says what is foreseen of it.

    `bytes` are those of the whole file, foreseen or, where the task was given, written; `loss` is how far the outputs move,
    squared, of their variance: the sum over the layers, as if these did not know of each other. `choices` says what each layer
    gets, by its path.
    """

    def __init__(self, steps: Sequence[Step], choices: Choices, bytes: int, loss: float) -> None:
        super().__init__(steps)
        self.choices, self.bytes, self.loss = dict(choices), bytes, loss


def allocate(
    sensitivity: Sensitivity, *, size: str | int | None = None, loss: float | None = None, task: Task | None = None
) -> Allocation:
    """Bits, zeros and ranks for each layer: what loses least in a file of at most `size`, or is smallest within a `loss`.

    Errors of layers are taken to add up. Changes on the lower convex hull of each layer's bytes and errors are taken at one price
    of a byte, the Lagrangian's; where few layers leave wide gaps between its answers, a knapsack fills the limit better. A layer
    that no sample reached keeps the most bits that were measured. Bytes are foreseen from each layer alone: the file of a small
    network takes up to a fiftieth more. With the `task` it is written, and asked for smaller until it is within `size`.
    Units: `loss` is squared, of the variance of the outputs; 0.01 is little.
    Raises: TargetError for both or neither, or a limit that nothing keeps; RangeError for one that is none.
    Source: Shoham, Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers".
    """
    if not isinstance(sensitivity, Sensitivity):
        raise TaskError(f"sensitivity is {type(sensitivity).__name__}, not a Sensitivity; give what enxuto.sensitivity returned.")
    if (size is None) == (loss is None):
        raise TargetError("give either size='100 kB', the largest file, or loss=0.01, the most that outputs may move.")
    if loss is not None and not within(loss, "(0, inf)"):
        raise RangeError(
            f"{named('loss', loss)} is no positive number; outputs move by 1 when all is lost: use for example 0.01."
        )
    if task is not None and not isinstance(task, Task):
        raise TaskError(f"task is {type(task).__name__}, not a Task; give the one that was measured.")
    if size is not None:
        limit = parse_bytes(size)
        return _allocated(sensitivity, limit) if task is None else _fitting(sensitivity, limit, task)
    found = _allocated(sensitivity, 0, loss)
    found.bytes = found.bytes if task is None else _written(task, found)
    return found


def _fitting(sensitivity: Sensitivity, limit: int, task: Task) -> Allocation:
    """The steps whose file, written, is within the limit. Raises: TargetError when no file is."""
    asked, least = limit, math.inf
    while True:
        try:
            found = _allocated(sensitivity, asked)
        except TargetError as error:
            if least == math.inf:
                raise
            raise TargetError(
                f"size={limit} bytes is less than the smallest file that was made, {least} bytes; use size='"
                f"{ample_bytes(int(least))}', or measure fewer bits, more zeros or lower ranks."
            ) from error
        found.bytes = _written(task, found)
        if found.bytes <= limit:
            return found
        asked, least = asked - (found.bytes - limit), min(least, found.bytes)


def _written(task: Task, steps: Sequence[Step]) -> int:
    """The bytes of the file that these steps make."""
    with TemporaryDirectory() as folder:
        save(run(task, steps)[0], path := Path(folder) / "small.nxt", original=task.model)
        return file_bytes(path)


def _allocated(sensitivity: Sensitivity, limit: int, loss: float | None = None) -> Allocation:
    """What is best within the limit in bytes, or with a `loss` within that, as far as the layers alone foresee it."""
    offers = {layer.path: _offers(layer) for layer in sensitivity.layers}
    pairs = [[(each.bytes or 0, each.error or 0.0) for each in layer] for layer in offers.values()]
    taken = _within_size(sensitivity, pairs, limit) if loss is None else _within_loss(pairs, loss)
    choices = {path: layer[place] for (path, layer), place in zip(offers.items(), taken, strict=True)}
    quantize = from_data([{"step": "Quantize", **sensitivity.quantize}])[0]
    assert isinstance(quantize, Quantize)
    total = sensitivity.rest_bytes + sum(layer[place][0] for layer, place in zip(pairs, taken, strict=True))
    lost = sum(layer[place][1] for layer, place in zip(pairs, taken, strict=True))
    return Allocation(_steps(sensitivity.layers, choices, quantize), choices, round(total), lost)


def _offers(layer: LayerLosses) -> list[Loss]:
    """What a layer may get: what was measured; as it is where no bits were."""
    found = [loss for loss in layer.losses if loss.error is not None and loss.bytes is not None]
    bits = [loss for loss in found if loss.bits is not None and loss.sparsity is loss.size is None]
    if layer.why and bits:
        return [max(bits, key=lambda loss: loss.bits or 0)]
    whole = [] if bits else [Loss(bytes=layer.bytes, error=0.0)]
    return whole if layer.why else [*whole, *found]


def _within_size(sensitivity: Sensitivity, pairs: Sequence[Sequence[Offer]], limit: int) -> list[int]:
    left = limit - sensitivity.rest_bytes
    taken = next((taken for taken, cost, _ in cheapest_steps(pairs) if cost <= left), None)
    if taken is None:
        least = [min(cost for cost, _ in layer) for layer in pairs]
        path, most = max(zip((layer.path for layer in sensitivity.layers), least, strict=True), key=lambda pair: pair[1])
        rest = sensitivity.rest_bytes
        raise TargetError(
            f"size={limit} bytes is less than there is: at their least the layers take {format_bytes(sum(least))}, "
            f"'{path}' alone {format_bytes(most)}, and the rest of the file {format_bytes(rest)}; use size='"
            f"{ample_bytes(round(sum(least)) + rest)}', or measure fewer bits, more zeros or lower ranks."
        )
    return _better(pairs, taken, left)


def _within_loss(pairs: Sequence[Sequence[Offer]], limit: float) -> list[int]:
    steps = list(cheapest_steps(pairs))
    within_it = [taken for taken, _, lost in steps if lost <= limit]
    if not within_it:
        raise TargetError(
            f"loss={limit} is less than there is: at the most bits that were measured, layers lose {steps[0][2]:.2g} together; "
            "use at least that, or measure more bits."
        )
    return _better([[(lost, cost) for cost, lost in layer] for layer in pairs], within_it[-1], limit)


def _better(pairs: Sequence[Sequence[Offer]], taken: list[int], limit: float) -> list[int]:
    """The Lagrangian's answer, or that of the knapsack where it loses less."""
    other = knapsack(pairs, limit)
    return taken if other is None else min(taken, other, key=lambda places: _lost(pairs, places))


def _lost(pairs: Sequence[Sequence[Offer]], places: Sequence[int]) -> float:
    return sum(layer[place][1] for layer, place in zip(pairs, places, strict=True))


def _steps(layers: Sequence[LayerLosses], choices: Choices, quantize: Quantize) -> list[Step]:
    """Thin layers first, each by itself, as a size is shared out over the layers of one step; then zeros, then bits."""
    thin = [layer for layer in layers if choices[layer.path].size is not None]
    found = [step for layer in thin for step in steps_of(Loss(size=choices[layer.path].size), layer.patterns, quantize)]
    for name in ("sparsity", "bits"):
        groups: dict[float, list[str]] = {}
        for layer in layers:
            value = getattr(choices[layer.path], name)
            if value is not None:
                groups.setdefault(value, []).extend(layer.patterns)
        for value, patterns in sorted(groups.items(), reverse=True):
            change = Loss(sparsity=value) if name == "sparsity" else Loss(bits=int(value))
            found += steps_of(change, patterns, quantize)
    return found
