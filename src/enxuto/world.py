"""The processes that share one job, as torchrun or lightning-fabric start them: what all know, and what the first does alone.

Each runs the same script on the same data. Whatever is no training is done by all alike, or by the first, which tells the
others; files are written by the first. Without such processes everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from enxuto.errors import Error, ProcessError, TaskError

Item = TypeVar("Item")
STARTED = "ENXUTO_STARTED"  # in the environment: the process that torchrun has started
ALIKE = 1e-4  # how far weights may be apart, beside their size, that are meant to be the same on other processors


_alone: ContextVar[bool] = ContextVar("alone", default=False)


def size() -> int:
    """How many processes share this job. Joins them where torchrun has started some and nobody has."""
    if _alone.get() or not distributed.is_available():
        return 1
    if not distributed.is_initialized():
        if not _started():
            return 1
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with together("start"):
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.get_world_size()


def _started() -> bool:
    """True in a process that torchrun has started; not in one that such a process starts, which inherits what it was told."""
    if "MASTER_ADDR" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    return os.environ.setdefault(STARTED, str(os.getpid())) == str(os.getpid())


def rank() -> int:
    """Which of them this is; 0 is the first."""
    return distributed.get_rank() if size() > 1 else 0


def device() -> torch.device:
    """Where this process trains: a card of its own, or the processor."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def same(value: Item) -> Item:
    """The value that the first process has. All call it."""
    if size() == 1:
        return value
    told = [value]
    with together("hear of the first"):
        distributed.broadcast_object_list(told, src=0)
    return told[0]


def first(work: Callable[[], Item]) -> Item:
    """What the first process makes of it, alone; all call it, and what it raises they raise too."""
    if size() == 1:
        return work()
    made: tuple[Item | None, Error | None] = (None, None)
    if not rank():
        token = _alone.set(True)  # nothing within waits for the others, who wait for it
        try:
            made = work(), None
        except Error as error:
            made = None, error
        finally:
            _alone.reset(token)
    given, failed = same(made)
    if failed is not None:
        raise failed
    return given  # type: ignore[return-value]


def mean_(tensors: Iterable[Tensor]) -> None:
    """Puts the mean over all processes into each tensor."""
    if size() == 1:
        return
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for held in by_kind.values():
        flat = torch.cat([tensor.flatten() for tensor in held])
        with together("add up what each has"):
            distributed.all_reduce(flat)
        flat /= size()
        for tensor, part in zip(held, flat.split([tensor.numel() for tensor in held]), strict=True):
            tensor.copy_(part.view_as(tensor))


def check(model: nn.Module, what: str) -> None:
    """Raises: TaskError when weights or buffers are not the same in all processes, as where each has drawn its own.

    All call it; rounding does not count.
    """
    _compare_(model, what, copy=False)


def agree_(model: nn.Module, what: str) -> None:
    """The same, and then not even rounding sets them apart: all have those of the first."""
    _compare_(model, what, copy=True)


def _compare_(model: nn.Module, what: str, *, copy: bool) -> None:
    if size() == 1:
        return
    held = [tensor.data for tensor in (*model.parameters(), *model.buffers())]
    sizes = [tuple(tensor.shape) for tensor in held]
    apart = 1 if same(sizes) != sizes else 0
    for tensor in held if not _any(apart) else ():
        own, told = tensor.contiguous(), tensor.clone(memory_format=torch.contiguous_format)
        with together("compare what each has"):
            distributed.broadcast(told, src=0)
        if own.is_floating_point():
            apart |= int((own.double() - told.double()).norm() > ALIKE * (1e-12 + told.double().norm()))
        else:
            apart |= int(not torch.equal(own, told))
        if copy:
            tensor.copy_(told)
    if _any(apart):
        raise TaskError(
            f"{what} has other weights in process {rank()} of {size()} than in another; load the same checkpoint in each, or "
            "call torch.manual_seed(0) before the network is made."
        )


def _any(flag: int) -> bool:
    told = torch.tensor([flag])
    with together("compare what each has"):
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return bool(told)


def steady(items: Iterable[Item], seed: int) -> Iterator[Item]:
    """The items, drawn with random numbers of their own that are the same in every process, whatever happens between them.

    Between them each process has others.
    """
    if size() == 1:
        yield from items
        return
    source, drawing = iter(items), torch.get_rng_state()
    torch.manual_seed(seed + rank())
    own = torch.get_rng_state()
    while True:
        torch.set_rng_state(drawing)
        try:
            item = next(source)
        except StopIteration:
            return
        finally:
            drawing = torch.get_rng_state()
            torch.set_rng_state(own)
        yield item
        own = torch.get_rng_state()


def own_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path in the first process; in others one of the same name in a folder that goes with the process."""
    if not rank():
        return path
    folder = Path(tempfile.mkdtemp(prefix="enxuto-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / Path(path).name


@contextmanager
def together(what: str) -> Iterator[None]:
    """Where all processes have to be there. Raises: ProcessError when one is not."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"a process of this job is gone or does not answer, and the others cannot {what}: {_said(error)}; see its own "
            "message, and start the job again: compress(out=...) goes on from what was kept there."
        ) from error


def _said(error: Any) -> str:
    return " ".join(str(error).split())[:200]


_started()  # before anything can start another process
