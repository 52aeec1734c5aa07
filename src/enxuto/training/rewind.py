"""Rewinding: the zeros that a training led to, with the values that weights had early in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.errors import ShapeError, TaskError
from enxuto.layers.coded import Coded
from enxuto.layers.rehearsal import Rehearsal
from enxuto.sites import sites
from enxuto.surgery import duplicate


@torch.no_grad()
def rewind(model: nn.Module, early: nn.Module | Mapping[str, Tensor]) -> nn.Module:
    """A copy of a pruned network with the values of an early one, which you have kept: the network or its state dict.

    Zeros of weights stay; all else, biases and the statistics of norms among it, is as it was. Train it again with `Recover` or
    `prepare`, which hold the zeros. Keep the early state after some hundred batches, by `copy.deepcopy(net.state_dict())`: before
    the first, large networks have no winning tickets.
    Raises: TaskError for a network that is coded or in training, or a state that lacks a tensor or has others; ShapeError where a
    tensor has another shape, as after channels were taken out.
    Source: Frankle, Carbin 2019, "The lottery ticket hypothesis"; Frankle et al. 2020, "Linear mode connectivity and the lottery
    ticket hypothesis", section 4, for the early state.
    """
    if not isinstance(model, nn.Module):
        raise TaskError(f"model is {type(model).__name__}, not a torch.nn.Module; give the pruned network.")
    if isinstance(early, nn.Module):
        early = early.state_dict()
    if not isinstance(early, Mapping):
        raise TaskError(f"early is {type(early).__name__}, neither a network nor its state dict; give net.state_dict() of then.")
    for path, module in model.named_modules():
        if isinstance(module, (Coded, Rehearsal)):
            what = "in training" if any(isinstance(each, Rehearsal) for each in module.modules()) else "coded"
            raise TaskError(
                f"'{path}' is {what}, and early values are plain floats; "
                + ("call convert first." if what == "in training" else "rewind before Quantize or Share.")
            )
    made = duplicate(model)
    _check(made.state_dict(), early)
    kept = {weight.key: weight.read() != 0 for weight in sites(made)}
    made.load_state_dict(early)
    for weight in sites(made):
        weight.write_(weight.read().where(kept[weight.key], 0.0))
    return made


def _check(own: Mapping[str, Tensor], early: Mapping[str, Any]) -> None:
    other = sorted(own.keys() ^ early.keys())
    if other:
        has, lacks = ("the pruned network", "the early state") if other[0] in own else ("the early state", "the pruned network")
        raise TaskError(f"{has} holds '{other[0]}' and {lacks} does not; give the state of the very same network.")
    for name, tensor in own.items():
        if tuple(tensor.shape) != tuple(early[name].shape):
            raise ShapeError(
                f"'{name}' is {tuple(tensor.shape)} in the pruned network and {tuple(early[name].shape)} early on; rewind after "
                "steps that leave shapes as they are, as Prune."
            )
