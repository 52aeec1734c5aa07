"""A network beside the one it was made from, on the same batches: layer by layer its statistics are made to agree again.

Each batch goes through the original first. In the other network it is then repaired as it flows, with all that the batches so
far have shown, so that every layer is compared on inputs that are repaired already, in one pass.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.batches import Batch
from enxuto.calls import evaluating, finite_answers
from enxuto.functional.paired import Moved, Paired, row_moments
from enxuto.progress import counted

UNREACHED = "no calibration batch reaches it"
OTHER_SHAPE = "its values have another shape than the original's"
OTHER_CALLS = "it is called more or less often than in the original"
NOT_FINITE = "its values or their squares are not finite"


class Place:
    """Where two networks are compared: a layer, that of the original which does the same, and the axis of its channels.

    `fault` says why nothing can be compared there; `found` is what the batches so far have shown.
    """

    stretched = False  # whether the mean is compared with that of an original of the spread that is found

    def __init__(self, path: str, source: str, axis: int) -> None:
        self.path, self.source, self.axis = path, source, axis
        self.paired = Paired()
        self.found: Moved | None = None
        self.fault = ""
        self.waiting: deque[Tensor] = deque()

    def watch(self, original: nn.Module, model: nn.Module) -> list[Any]:
        """Hooks on both layers."""
        raise NotImplementedError

    @property
    def changed(self) -> bool:
        """True where something is to be put right."""
        return not self.fault and self.found is not None and self.found.far

    def before(self, values: Tensor) -> None:
        """Keeps what the original has here until the other network comes by."""
        self.waiting.append(row_moments(values, self.axis))

    def compare(self, values: Tensor) -> Moved | None:
        """What has been shown with these values taken in; None where nothing can be compared."""
        before = self.waiting.popleft() if self.waiting else None
        rows = row_moments(values, self.axis)
        if before is None:
            self.fault = self.fault or OTHER_CALLS
        elif self._expected(before).shape != rows.shape:
            self.fault = self.fault or OTHER_SHAPE
        elif not bool(torch.isfinite(before).all() & torch.isfinite(rows).all()):
            self.fault = self.fault or NOT_FINITE
        if before is None or self.fault:
            self.found = None
        else:
            self.paired.add(self._expected(before), rows, values.numel() // max(1, rows.shape[2]))
            self.found = self.paired.moved(stretched=self.stretched)
        return self.found

    def _expected(self, rows: Tensor) -> Tensor:
        return rows

    def end_batch(self) -> None:
        """After a batch nothing of the original may be left over."""
        if self.waiting:
            self.fault = self.fault or OTHER_CALLS
            self.waiting.clear()
            self.found = None


class NormPlace(Place):
    """The inputs of a batch norm, whose running statistics follow; `keep` [channels] says which the smaller network still has."""

    def __init__(self, path: str, keep: Tensor | None = None) -> None:
        super().__init__(path, path, 1)
        self.keep = keep

    def watch(self, original: nn.Module, model: nn.Module) -> list[Any]:
        was, now = original.get_submodule(self.source), model.get_submodule(self.path)
        assert isinstance(was, _BatchNorm)
        assert isinstance(now, _BatchNorm)
        self.norm, self.began = now, _statistics(now)
        self.right = _statistics(was) if self.keep is None else _statistics(was)[:, self.keep]

        def see(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            self.before(_first((*args, *kwargs.values())))

        def repair(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            self.compare(_first((*args, *kwargs.values())))
            self._write_()

        return [was.register_forward_pre_hook(see, with_kwargs=True), now.register_forward_pre_hook(repair, with_kwargs=True)]

    @property
    def changed(self) -> bool:
        return not self.fault and not torch.equal(_statistics(self.norm), self.began)

    def _write_(self) -> None:
        """What the original's norm has, moved; as it was where nothing can be compared."""
        moved = self.began
        if self.found is not None:
            mean, variance = self.right
            far = self.found.far
            moved = torch.stack((mean + self.found.shift, variance * torch.exp(self.found.stretch))) if far else self.right
        for statistic, values in zip((self.norm.running_mean, self.norm.running_var), moved, strict=True):
            assert statistic is not None
            values = values.to(statistic)
            statistic.copy_(torch.where(torch.isfinite(values), values, statistic))

    def _expected(self, rows: Tensor) -> Tensor:
        return rows if self.keep is None else rows[..., self.keep]


class OutputPlace(Place):
    """The outputs of a layer, which a gain (1 where the layer takes none) and a shift for each channel bring back."""

    def __init__(self, path: str, source: str, axis: int, *, gains: bool) -> None:
        super().__init__(path, source, axis)
        self.gains, self.stretched = gains, not gains

    def correction(self) -> tuple[Tensor, Tensor]:
        """The gain and the shift. Shapes: float64 [channels] each."""
        found = self.found
        assert found is not None
        gain = torch.exp(-found.stretch / 2) if self.gains else torch.ones_like(found.stretch)
        return gain, (1 - gain) * found.after - found.shift

    def watch(self, original: nn.Module, model: nn.Module) -> list[Any]:
        def see(_: nn.Module, args: object, output: Any) -> None:
            self.before(_first(output))

        def repair(_: nn.Module, args: object, output: Any) -> Any:
            values = _first(output)
            found = self.compare(values)
            if found is None or not found.far:
                return None
            shape = [1] * values.ndim
            shape[self.axis] = -1
            gain, shift = (each.to(values).view(shape) for each in self.correction())
            repaired = values * gain + shift
            return repaired if isinstance(output, Tensor) else (repaired, *output[1:])

        was, now = original.get_submodule(self.source), model.get_submodule(self.path)
        return [was.register_forward_hook(see), now.register_forward_hook(repair)]


def agree_(model: nn.Module, original: nn.Module, places: Sequence[Place], batches: Iterable[Batch]) -> None:
    """Moves the running statistics of norms in place, and leaves at each place of outputs what would bring them back.

    Norms have then what the original's have, moved by what the batches show to be different; a statistic that no number
    holds stays. Raises: TaskError when a network fails on a batch or gives values that are not finite.
    """
    hooks = [hook for place in places for hook in place.watch(original, model)]
    shown = counted(batches, "both networks")
    first, second = itertools.tee(shown)  # a loader may shuffle: both networks get the very same batches
    try:
        with evaluating(original), evaluating(model):
            for _ in zip(finite_answers(original, first), finite_answers(model, second), strict=True):
                for place in places:
                    place.end_batch()
    finally:
        for hook in hooks:
            hook.remove()
    for place in places:
        place.fault = place.fault or ("" if place.paired.count else UNREACHED)


def _statistics(norm: _BatchNorm) -> Tensor:
    """Running mean and variance. Shapes: float64 [2, channels]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return torch.stack((norm.running_mean, norm.running_var)).double()


def _first(values: Any) -> Tensor:
    """The values themselves, or the first of several."""
    first: Tensor = values if isinstance(values, Tensor) else values[0]
    return first
