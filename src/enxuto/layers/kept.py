"""Decoded weights that are kept beside their codes. They belong to this process: no copy, file or fingerprint knows of them."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class _Kept:
    """The values, and the tensors they depend on, themselves among them, each as often written to as it was then."""

    values: Tensor
    dtype: torch.dtype
    seen: tuple[tuple[Tensor, int], ...]

    def holds(self, coded: nn.Module) -> bool:
        """True while nothing was changed or replaced."""
        now = (self.values, *_buffers(coded))
        same = len(now) == len(self.seen) and all(
            tensor is before and _version(tensor) == version for tensor, (before, version) in zip(now, self.seen, strict=True)
        )
        return same and self.dtype == vars(coded)["dtype"]


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def keep(coded: nn.Module, values: Tensor) -> None:
    """Keeps what a coded tensor decodes to."""
    seen = tuple((tensor, _version(tensor)) for tensor in (values, *_buffers(coded)))
    _kept[coded] = _Kept(values, vars(coded)["dtype"], seen)


def recalled(coded: nn.Module) -> Tensor | None:
    """What was kept; None where nothing is, or codes, grid, device, type or the values were changed since: then it is dropped."""
    kept = _kept.get(coded)
    if kept is not None and not kept.holds(coded):
        drop(coded)
        return None
    return None if kept is None else kept.values


def drop(coded: nn.Module) -> None:
    """Forgets the values of a coded tensor."""
    _kept.pop(coded, None)


def _buffers(coded: nn.Module) -> list[Tensor]:
    return [buffer for buffer in coded._buffers.values() if buffer is not None]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
