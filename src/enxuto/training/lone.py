"""Batch norms that get a single value a channel, as from a last batch of one sample: its variance is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def lone_values(model: nn.Module) -> Iterator[list[int]]:
    """Batch norms that get one value a channel, whose variance is none, use their running statistics for it.

    Yields a list that has grown when that happened.
    """
    seen: list[int] = []

    def before(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if norm.training and isinstance(given, Tensor) and given.numel() == given.shape[1]:
            norm.training = False
            seen.append(id(norm))

    def after(norm: nn.Module, inputs: object, outputs: object) -> None:
        norm.training = norm.training or id(norm) in seen

    norms = [it for it in model.modules() if isinstance(it, _BatchNorm) and it.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(before, with_kwargs=True) for norm in norms]
    hooks += [norm.register_forward_hook(after, always_call=True) for norm in norms]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
