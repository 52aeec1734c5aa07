"""Measures the memory of a real step, by what the allocator itself reports."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from enxuto import batches
from enxuto.batches import Batch, leaves, mapped, resized
from enxuto.copies import copied
from enxuto.errors import Error, TaskError
from enxuto.memory.profile import INPUTS, Profile
from enxuto.memory.tracker import Tracker
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision, check_device, of_its_own

_QUIET = "99"
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def record(
    model: nn.Module,
    batch: Batch | Any,
    *,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    batch_size: int | None = None,
    precision: Precision = "32-true",
    accumulation: int = 1,
    device: str | None = None,
) -> Profile:
    """The memory of one inference, or with `loss` of one training step, really run on a copy of the model.

    The arguments are those of `predict`. A step before it makes the optimizer's states. What operators need inside
    themselves is the allocator's report less what tensors hold; it counts as temporaries.
    Raises: TaskError or RangeError when the arguments make no sense, or the model, the loss or the optimizer fails on the batch.
    """
    step = Pass(loss, optimizer, precision, accumulation)
    step.check(model, batch)
    return measured(model, batch, step, batch_size, device)


def measured(model: nn.Module, batch: Any, step: Pass, batch_size: int | None, device: str | None) -> Profile:
    """What `record` gives, of a step that is described already. Raises TaskError with the reason when it fails."""
    check_device(device)
    try:
        return _on_copy(model, batch, step, batch_size, device)
    except Error:
        raise
    except Exception as error:
        size = batch_size or batches.batch_size(batch[0] if step.loss is not None else batch)
        one = "; one sample is too few for a batch norm, so try batch_size=2" if size == 1 and step.loss is not None else ""
        raise TaskError(
            f"the {step.name} fails with batch_size={size}, precision={step.precision}: {type(error).__name__}: {error}; "
            f"the batch, the loss and the model must fit each other{one}."
        ) from error


@torch.inference_mode(False)  # whatever mode the caller is in
def _on_copy(model: nn.Module, batch: Any, step: Pass, batch_size: int | None, device: str | None) -> Profile:
    gc.collect()  # torch complains on the terminal of what goes meanwhile and had come before
    with allocations() as reported:  # so from before the first step, of which the second may free something
        double = copied(model).train(step.loss is not None)
        given = mapped(batch, lambda tensor: step.cast(of_its_own(tensor).to(device)))
        given = given if batch_size is None else resized(given, batch_size)
        for tensor in [*double.parameters(), *double.buffers()]:
            tensor.data = step.cast(tensor.data.to(device))
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):  # what is compiled cannot be followed
            made = step.make_optimizer(double)
            step.run(double, given, made)
            (double if made is None else made).zero_grad(set_to_none=True)
            finish = _followed(double, given, step, made, reported)
    return finish()


def _followed(
    model: nn.Module, batch: Any, step: Pass, optimizer: torch.optim.Optimizer | None, reported: Allocations
) -> Callable[[], Profile]:
    """Runs the step; what it gives makes the profile, when all is reported."""
    times: list[int] = []
    rss: list[int] = []

    def note() -> None:
        times.append(time.time_ns())
        rss.append(resident_bytes())

    on_gpu = any(tensor.is_cuda for tensor in model.parameters())
    follow = _OnGpu if on_gpu else Tracker
    tracker = follow(model, *([] if optimizer is None else [optimizer]), on_moment=note)
    with tracker:
        for tensor in leaves(batch):
            tracker.follow(tensor, INPUTS)
        before = tuple(tracker.lives)
        began, start = tracker.now_bytes, reported.begin()
        step.run(model, batch, optimizer)
        seconds = (time.time_ns() - start) / 1e9
    profile = Profile(tracker.blocks(), tuple(tracker.moments), predicted=False, rss_bytes=tuple(rss), seconds=seconds)
    gone: Counter[int] = Counter()
    for life in before:
        gone[life.died] += life.size_bytes

    def finish() -> Profile:
        if not on_gpu:
            _inside(tracker, profile, reported, [start, *times], began, gone)
        return replace(profile, blocks=tracker.blocks())

    return finish


class _OnGpu(Tracker):
    """Reads the marks of CUDA's own allocator around each operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        torch.cuda.reset_peak_memory_stats()
        outputs = super().__torch_dispatch__(func, types, args, kwargs)
        inside = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        if inside > 0 and self.moments:
            self.brief(len(self.moments) - 1, inside, self.moments[-1].path)
        return outputs


def _inside(
    tracker: Tracker, profile: Profile, reported: list[tuple[int, int]], times: list[int], began: int, gone: Counter[int]
) -> None:
    """Adds what the allocator held during each operator beyond the tensors that were alive after it.

    `gone` holds the bytes that went at a moment without a report, as they had come before the first.
    """
    held, at, most = began, 0, began
    for when, change in reported:
        while at < len(profile.moments) and when > times[at + 1]:
            _brief(tracker, profile, at, most)
            at += 1
            held -= gone[at]
            most = held
        held += change
        most = max(most, held)
    if at < len(profile.moments):
        _brief(tracker, profile, at, most)


def _brief(tracker: Tracker, profile: Profile, at: int, most: int) -> None:
    undone = max(tracker.undone.get(moment, 0) for moment in (at - 1, at))  # a copy is there until its moment is over
    inside = most - int(profile.total_bytes[at]) - undone
    if inside > 0:
        tracker.brief(at, inside, profile.moments[at].path)


class Allocations(list[tuple[int, int]]):
    """What the CPU's allocator did since the block began, or since `begin`: moments in nanoseconds since 1970, and bytes,
    negative when freed. What had been given out before is not in it, nor when it is freed."""

    begun = 0

    def begin(self) -> int:
        """This moment, from which on things count."""
        self.begun = time.time_ns()
        return self.begun

    def read(self, events: Iterable[Any]) -> None:
        """Takes in what the profiler saw; of a block that was there when it began, it knows no size, or one of an earlier run."""
        given: set[int] = set()
        for event in sorted(_all(events), key=lambda event: event.start_time_ns):
            at, change, place = event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.ptr
            if at >= self.begun and (change > 0 or place in given):
                self.append((at, change))
                (given.add if change > 0 else given.remove)(place)


def _all(events: Iterable[Any]) -> Iterator[Any]:
    """Those of an allocator, in a tree of events."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event
        yield from _all(event.children)


@contextmanager
def allocations() -> Iterator[Allocations]:
    """What the CPU's allocator does inside the block, once the block is over."""
    os.environ.setdefault("KINETO_LOG_LEVEL", _QUIET)  # its messages are for those who debug the profiler
    from torch.profiler import ProfilerActivity, profile

    if torch._C._autograd._profiler_enabled():
        raise TaskError("torch's profiler runs already, and there is one alone; measure the memory outside of its block.")
    reported = Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield reported
    reported.read(profiler.profiler.kineto_results.experimental_event_tree())


def resident_bytes() -> int:
    """The resident size of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0
