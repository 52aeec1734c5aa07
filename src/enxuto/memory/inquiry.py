"""Asks the library itself what an operator needs inside: runs it on zeros of its shape and reads what the allocator did.

A library chooses copies, layouts and partial sums by the processor, the shapes and its own version; a rule holds where it was
read, an answer wherever it is asked. Large batches are not run: every allocation is a straight line in the samples, and two
small batches show it. Answers are kept for the process.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from enxuto.errors import TaskError
from enxuto.memory.convolutions import HALF, MKLDNN, backend
from enxuto.memory.recording import allocations
from enxuto.sizes import tensor_bytes

aten = torch.ops.aten
ROWS = {aten.convolution: (0,), aten.convolution_backward: (0, 1), aten.mm: (), aten.addmm: ()}
"""The operators that are asked, and which of their arguments are rows of samples; of a convolution, the last is the image."""
EASY_BYTES, EASY_WORK = 1 << 23, 100e6
"""A batch of so many bytes and floating point operations is run as it is: some milliseconds of an ordinary core."""
MOST_BYTES, MOST_WORK = 1 << 27, 4e9
"""More than that is not run for an answer."""
SLOWER = 5
"""How many times longer half precision takes where oneDNN does not have it (measured: 3 to 4 operations a nanosecond)."""

Changes = tuple[int, ...]
"""What the allocator gave out, and took back (negative), in its order."""


class _Shape(NamedTuple):
    """A tensor in a question."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def resized(self, rows: int) -> _Shape:
        return self._replace(size=(rows, *self.size[1:]))

    @property
    def by_rows(self) -> bool:
        """True if the samples lie one after the other, or are all the same one."""
        return self.stride[0] == 0 or self.stride[0] > sum(
            (n - 1) * s for n, s in zip(self.size[1:], self.stride[1:], strict=True)
        )

    def zeros(self) -> Tensor:
        extent = 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        return torch.zeros(extent if 0 not in self.size else 0, dtype=self.dtype).as_strided(self.size, self.stride)


@dataclass(frozen=True)
class _Question:
    """An operator with all that it gets; shapes stand for tensors."""

    func: Any
    args: tuple[Any, ...]
    threads: int
    mkldnn: bool  # whether torch may use oneDNN

    @property
    def rows(self) -> tuple[_Shape, ...]:
        return tuple(self.args[at] for at in ROWS[self.func.overloadpacket])

    def resized(self, samples: int) -> _Question:
        at = ROWS[self.func.overloadpacket]
        return replace(self, args=tuple(arg.resized(samples) if i in at else arg for i, arg in enumerate(self.args)))

    @cached_property
    def backend(self) -> str:
        """Which of its ways torch takes for a convolution; small batches may go another one."""
        at = ROWS[self.func.overloadpacket][-1]
        x, weight = (torch.zeros(1, dtype=shape.dtype).expand(shape.size) for shape in self.args[at : at + 2])
        return backend(x, weight, self.args[at + 3 : at + 9])


_known: dict[_Question, Changes] = {}


def inside(func: Any, args: tuple[Any, ...], outputs: Any) -> int | None:
    """Bytes inside an operator, at its fullest moment, beyond what it gives back, on this machine and with its threads.

    None when it is not asked (see `ROWS`), is too large even for few samples, or cannot be run, as while a profiler runs.
    """
    if func.overloadpacket not in ROWS or not all(tensor.numel() for tensor in args if isinstance(tensor, Tensor)):
        return None
    question = _Question(func, _frozen(args), torch.get_num_threads(), torch._C._get_mkldnn_enabled())
    half = next(arg for arg in question.args if isinstance(arg, _Shape)).dtype.itemsize == HALF
    size_bytes = sum(tensor_bytes(tensor) for tensor in tree_leaves((args, outputs)) if isinstance(tensor, Tensor))
    work = flop_registry[func.overloadpacket](*args, out_val=outputs)
    most, easy = max(size_bytes / MOST_BYTES, work / MOST_WORK), max(size_bytes / EASY_BYTES, work / EASY_WORK)
    try:
        with _disable_current_modes(), torch.no_grad(), torch._C._DisableAutocast():
            if not question.rows:  # products, which need nothing in 32 bits
                return _beyond(_changes(question)) if half and most <= 1 else None
            samples = question.rows[0].size[0]
            if half and not question.backend.startswith(MKLDNN):
                most, easy = SLOWER * most, SLOWER * easy
            return _answer(question, samples, most / samples, easy / samples)
    except (TaskError, RuntimeError):
        return None


def _answer(question: _Question, samples: int, most: float, easy: float) -> int | None:
    """The answer; a sample is `most` of what may be run at all, and `easy` of what is run at once."""
    if samples <= 2 or (_power_below(samples) == samples and samples * easy <= 1):
        return _beyond(_changes(question)) if samples * most <= 1 else None
    if not all(shape.by_rows for shape in question.rows):
        return None
    low = _power_below(min(samples, max(question.threads, int(0.5 / easy), 2)))
    while low > 1 and 2 * low * most > 1:
        low //= 2
    while 2 * low < samples and question.resized(low).backend != question.backend:
        low *= 2
    high = 2 * low
    if high * most > 1:
        return None
    first, last = (_changes(question.resized(size)) for size in (low, high))
    part = (samples - low) / (high - low)
    if [change > 0 for change in first] == [change > 0 for change in last]:
        return _beyond([round(one + part * (other - one)) for one, other in zip(first, last, strict=True)])
    one, other = _beyond(first), _beyond(last)
    return max(0, round(one + part * (other - one)))


def _power_below(count: int) -> int:
    """The largest power of two that is not above it."""
    return 1 << (count.bit_length() - 1)


def _changes(question: _Question) -> Changes:
    """What the allocator does while the operator runs."""
    if question not in _known:
        given = [arg.zeros() if isinstance(arg, _Shape) else arg for arg in question.args]
        with allocations() as reported:
            outputs = question.func(*given)
        del outputs  # not before the report was closed
        _known[question] = tuple(change for _, change in reported)
    return _known[question]


def _beyond(changes: Sequence[int]) -> int:
    """The most that is held, less what is held in the end."""
    levels = list(itertools.accumulate(changes, initial=0))
    return max(levels) - levels[-1]


def _frozen(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return _Shape(tuple(arg.shape), tuple(arg.stride()), arg.dtype)
    return tuple(map(_frozen, arg)) if isinstance(arg, (list, tuple)) else arg
