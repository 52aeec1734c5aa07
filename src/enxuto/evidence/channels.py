"""What flows into each layer, channel by channel: sizes, ends, dead channels, and what half of the samples did not foretell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from enxuto.batches import Batch, parts
from enxuto.calibrate import value_range, watch_inputs
from enxuto.evidence.samples import small_batch

CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)


class Inputs:
    """The inputs of one layer over all samples, masks left out. Shapes: `squares` float64 [channels]."""

    def __init__(self) -> None:
        self.squares: Tensor = torch.zeros(())
        self.count = 0  # of values in each channel
        self.low, self.high = float("inf"), float("-inf")  # of the first half of the samples
        self.largest = 0.0
        self.seen = self.outside = 0  # of the second half, and how many lie beyond the ends of the first

    def add(self, values: Tensor, axis: int, *, later: bool) -> None:
        """Takes in values, of the first half of the samples or of the later one."""
        low, high = value_range(values)
        rows = values.detach().movedim(axis, -1).reshape(-1, values.shape[axis])
        fine = (rows >= low) & (rows <= high)
        self.squares = self.squares + torch.where(fine, rows.double(), 0).square().sum(0)
        self.count += len(rows)
        self.largest = max(self.largest, -low, high)
        if later:
            self.seen += int(fine.sum())
            self.outside += int((fine & ((rows < self.low) | (rows > self.high))).sum())
        else:
            self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def sizes(self) -> Tensor:
        """The root mean square of each channel."""
        return (self.squares / max(1, self.count)).sqrt()


def inputs_of(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Inputs]:
    """What flows into each layer that takes floats, by path; layers that did not run are absent.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    given = [half for batch in batches for half in _halves(model, batch)]
    found: dict[str, Inputs] = {}
    modules = dict(model.named_modules())
    place = 0

    def counted() -> Iterator[Batch]:
        nonlocal place
        for number, batch in enumerate(given):
            place = number
            yield batch

    def see(path: str, values: Tensor) -> None:
        axis = 1 if isinstance(modules[path], CHANNELS_FIRST) and values.ndim > 1 else values.ndim - 1
        found.setdefault(path, Inputs()).add(values, axis, later=place > 0 and 2 * place >= len(given))

    watch_inputs(model, counted(), see)
    return found


def _halves(model: nn.Module, batch: Batch) -> Sequence[Batch]:
    """The batch in two, where the model takes fewer samples."""
    return [batch] if small_batch(model, batch) is batch else parts(batch, 2)
