"""Activation checkpointing: a layer keeps its inputs alone and runs once more in the backward pass.

Source: Chen, Xu, Zhang, Guestrin 2016, "Training deep nets with sublinear memory cost". Which layers: see `plan`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from enxuto.errors import LayerError

_MARK = "_enxuto_checkpointed"


@contextmanager
def checkpointed(model: nn.Module, paths: Sequence[str]) -> Iterator[nn.Module]:
    """The model with the layers at `paths` checkpointed inside the block; afterwards they are what they were.

    Gradients are the same, bit for bit: dropout repeats its choices, and batch norms update their running statistics once.
    Raises: LayerError when a path matches no layer.
    """
    changed = checkpoint_(model, paths)
    try:
        yield model
    finally:
        for module in changed:
            module.__class__ = type(module).__mro__[1]


def checkpoint_(model: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """Checkpoints the layers at `paths` for good, as another trainer needs it; gives those that changed.

    Parameters, names and the state dict stay as they are.
    Raises: LayerError when there is no layer at a path.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if not path or path not in modules:
            some = ", ".join(repr(name) for name in list(modules)[1:7])
            raise LayerError(f"checkpoint path {path!r} is no layer inside the model; its layers are {some}, ...")
    changed = [modules[path] for path in dict.fromkeys(paths) if not hasattr(type(modules[path]), _MARK)]
    for module in changed:
        module.__class__ = _recomputing(type(module))  # type: ignore[arg-type]  # classes can be hashed
    return changed


@functools.cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """The same class of layers with another forward pass; a class of its own, so that copies of the model keep it."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _once(self)), **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:  # no module holds this class by its name, from which pickle would take it
        return _empty, (kind,), self.__getstate__()

    names = {"forward": forward, _MARK: True, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), names | ({"__reduce_ex__": reduce} if kind.__reduce__ is object.__reduce__ else {}))


def _empty(kind: type[nn.Module]) -> nn.Module:
    again = _recomputing(kind)  # type: ignore[arg-type]  # classes can be hashed
    return again.__new__(again)


@contextmanager
def _once(module: nn.Module) -> Iterator[None]:
    """While a layer runs again, its batch norms add nothing to their running statistics and count no batch."""
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.training and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
