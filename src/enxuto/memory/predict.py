"""Foresees the memory of a step without running it: the model, its gradients and states as tensors without storage."""

from __future__ import annotations

import copy
import logging
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from enxuto.memory.profile import INPUTS, Profile
from enxuto.memory.tracker import Tracker
from enxuto.memory.training import Loss, MakeOptimizer, Pass, Precision, resized, tensors
from enxuto.memory.workspace import workspace
from enxuto.task import Batch

logger = logging.getLogger(__name__)


def predict(
    model: nn.Module,
    batch: Batch | Any,
    *,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    batch_size: int | None = None,
    precision: Precision = "32-true",
    device: str | None = None,
) -> Profile:
    """The memory of one inference, or with `loss` of one training step, without running or allocating it.

    `batch` is what the model takes, or with `loss` a pair (inputs, targets); `batch_size` asks for another number of samples. A
    training step is a steady one: the optimizer's states are there already. `device` asks for another device.
    """
    step = Pass(loss, optimizer, precision)
    step.check(batch)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    double = fake_model(model, mode, step, device)
    with mode:
        given = tree_map_only(Tensor, lambda tensor: step.cast(_on(mode.from_tensor(tensor), device)), batch)
        given = given if batch_size is None else resized(given, batch_size)
        double.train(loss is not None)
        made = step.make_optimizer(double)
        if made is not None:
            step.run(double, given, made)
            made.zero_grad(set_to_none=True)
        tracker = Tracker(double, made, workspace=workspace)
        with tracker:
            for tensor in tensors(given):
                tracker.follow(tensor, INPUTS)
            step.run(double, given, made)
    return Profile(tracker.blocks(), tuple(tracker.moments), predicted=True)


def fake_model(model: nn.Module, mode: FakeTensorMode, step: Pass, device: str | None = None) -> nn.Module:
    """The same structure around tensors that have shapes but no storage; the model itself is left alone."""
    memo: dict[int, Any] = {}
    with mode:
        for tensor in [*model.parameters(), *model.buffers()]:
            fake = step.cast(_on(mode.from_tensor(tensor.detach()), device))
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fake
        return copy.deepcopy(model, memo)


def _on(tensor: Tensor, device: str | None) -> Tensor:
    return tensor if device is None else tensor.to(device)
