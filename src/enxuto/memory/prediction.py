"""Foresees the memory of a step without running it: the model, its gradients and states as tensors without storage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from enxuto.batches import Batch, leaves, mapped, resized
from enxuto.copies import copied
from enxuto.memory.profile import INPUTS, Profile
from enxuto.memory.recording import measured
from enxuto.memory.tracker import Tracker
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision, check_device, of_its_own
from enxuto.memory.workspace import Workspaces, complete_
from enxuto.sizes import tensor_bytes

logger = logging.getLogger(__name__)
COMPILES = "torchao."
"""Optimizers whose update is compiled, a parameter at a time; operator by operator it would look many times larger."""
COPIES = 2
"""Copies of the parameter that such an update holds (measured: torchao 0.18, AdamW8bit, as torch's own AdamW)."""


def predict(
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
    """The memory of one inference, or with `loss` of one training step, without running it; lone layers run on a few samples.

    `batch` is what the model takes, or with `loss` a pair (inputs, targets); `batch_size` asks for another number of samples. A
    training step is a steady one: the optimizer's states are there already. `device` asks for another device. A model that cannot
    be followed without values is really run, as `record` does, and the profile says so in `words`.
    Raises: TaskError or RangeError when the arguments make no sense, or the model, the loss or the optimizer fails on the batch.
    """
    step = Pass(loss, optimizer, precision, accumulation)
    step.check(model, batch)
    check_device(device)
    try:
        return foreseen(model, batch, step, batch_size, device)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        words = f"measured in a real run, because the model cannot be followed without values ({reason})"
        really = measured(model, batch, step, batch_size, device)  # raises when the model itself fails
        logger.warning("%s", words)
        return really.because(words)


@contextmanager
def said_once() -> Iterator[None]:
    """Inside, `predict` logs each reason for a real run once, however often it is asked."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = len(said)
        said.add(record.getMessage())
        return len(said) > known

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def foreseen(model: nn.Module, batch: Any, step: Pass, batch_size: int | None = None, device: str | None = None) -> Profile:
    """What `predict` gives, of a step that is described already. Raises torch's own error where values are needed."""
    profile, idle, keeps = _foreseen(model, batch, step, batch_size, device)
    if idle or keeps:
        profile, _, _ = _foreseen(model, batch, step, batch_size, device, idle, again=keeps)
    return profile


@torch.inference_mode(False)  # whatever mode the caller is in
def _foreseen(
    model: nn.Module,
    batch: Any,
    step: Pass,
    batch_size: int | None,
    device: str | None,
    idle: frozenset[str] = frozenset(),
    *,
    again: bool = False,
) -> tuple[Profile, frozenset[str], bool]:
    """The profile, the parameters that got no gradient, and whether the model keeps something of its step until the next.

    An optimizer has no states of parameters that are said to be `idle`. With `again` the step is the second one: what a hook
    keeps is then of such a batch, and goes when it is replaced.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    double = fake_model(model, mode, step, device)
    with mode, torch.compiler.set_stance("force_eager"):  # what is compiled cannot be followed
        given = mapped(batch, lambda tensor: step.cast(_on(of_its_own(mode.from_tensor(tensor)), device)))
        given = given if batch_size is None else resized(given, batch_size)
        double.train(step.loss is not None)
        made = step.make_optimizer(double)
        inside = Workspaces()
        tracker = Tracker(double, *([] if made is None else [made]), workspace=inside, complete_=complete_, weigh=True)
        numbers = _AnyNumber(made)
        if made is not None:
            with numbers:
                _make_states_(double, made, idle)
        if again:
            step.run(double, given, made, update=False)
            double.zero_grad(set_to_none=True)
        with numbers, tracker:
            for tensor in leaves(given):
                tracker.follow(tensor, INPUTS)
            compiled = made is not None and type(made).__module__.startswith(COMPILES)
            step.run(double, given, made, update=not compiled)
            if compiled:
                largest = max(tensor_bytes(parameter) for parameter in double.parameters())
                tracker.update(COPIES * largest)
            keeps = tracker.leaves_something
    trained = {} if made is None else dict(double.named_parameters())
    idle = frozenset(path for path, parameter in trained.items() if parameter.requires_grad and parameter.grad is None)
    profile = Profile(tracker.blocks(), tuple(tracker.moments), predicted=True, words=inside.words, unsure_bytes=inside.most)
    return profile, idle, keeps


class _AnyNumber(TorchDispatchMode):
    """Answers an optimizer that reads a number off a tensor without values, as its count of steps, with a half."""

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.updating = False
        if optimizer is not None:
            optimizer.register_step_pre_hook(lambda *_: self._set(True))
            optimizer.register_step_post_hook(lambda *_: self._set(False))

    def _set(self, updating: bool) -> None:
        self.updating = updating

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if self.updating and func is torch.ops.aten._local_scalar_dense.default:
            return 0.5  # no step of any optimizer divides by zero there
        return func(*args, **(kwargs or {}))


def _make_states_(model: nn.Module, optimizer: torch.optim.Optimizer, idle: frozenset[str]) -> None:
    """The states that the optimizer has after its first step."""
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and path not in idle:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def fake_model(model: nn.Module, mode: FakeTensorMode, step: Pass, device: str | None = None) -> nn.Module:
    """The same structure around tensors that have shapes but no storage; the model itself is left alone."""
    own = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}

    def fake(tensor: Tensor) -> Tensor:
        with unset_fake_temporarily():
            values = tensor.detach()  # without graphs, about which the mode would warn
        made = mode.from_tensor(values)
        return step.cast(_on(made, device)) if id(tensor) in own else made

    with mode:
        return copied(model, fake)


def _on(tensor: Tensor, device: str | None) -> Tensor:
    return tensor if device is None else tensor.to(device)
