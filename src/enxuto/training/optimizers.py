"""The optimizer of the user's choice: any of torch's by its name, checked before anything trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from enxuto.checks import named
from enxuto.errors import RangeError, TaskError

Options = Mapping[str, Any]
FIELDS = {"lr": "learning_rate", "weight_decay": "weight_decay"}  # of torch, which are arguments of their own here
WAYS = ("foreach", "fused", "differentiable", "capturable")  # options of how an update is computed, one of which shuts out others


def names() -> list[str]:
    """Those there are. LBFGS runs the network in its update, and SparseAdam takes no gradients that are dense."""
    found = [name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and issubclass(kind, Optimizer)]
    return sorted(set(found) - {"Optimizer", "LBFGS", "SparseAdam"})


def check(name: object, options: object, *, learning_rate: float, weight_decay: float) -> None:
    """Makes one update of one weight with it.

    Raises: RangeError for a name that torch.optim does not have, one that cannot be used, and options that it does not take.
    """
    if not isinstance(name, str) or name not in names():
        raise RangeError(f"{named('optimizer', name)} is not known; use one of {', '.join(names())}, as torch.optim calls them.")
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise RangeError(f"{named('options', options)} is no dict of arguments; write options={{'betas': (0.9, 0.99)}}.")
    own = next((key for key in options or () if key in FIELDS), None)
    if own is not None:
        raise RangeError(f"options holds {own!r}, which is an argument of its own; write {FIELDS[own]}= beside options.")
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        made(name, options, [weight], learning_rate=learning_rate, weight_decay=weight_decay).step()
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        known = [key for key in inspect.signature(getattr(torch.optim, name)).parameters if key not in ("params", *FIELDS)]
        raise RangeError(
            f"optimizer={name!r} with options={dict(options or {})} and weight_decay={weight_decay} does not work in torch: "
            f"{str(error).rstrip('.')}; its options are {', '.join(known)}."
        ) from error


def maker(name: str, options: Options | None) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """What makes it of parameters alone, under its name, for a plan of the memory."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return made(name, options, parameters, learning_rate=1e-3, weight_decay=0.0)

    make.__name__ = name
    return make


def made(
    name: str,
    options: Options | None,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    fused: bool = False,
) -> Optimizer:
    """The optimizer, in one pass over the weights (`fused`) where it has that and `options` do not say how to compute.

    Raises: TaskError when it does not take these parameters, as Muon takes matrices alone.
    """
    kind = getattr(torch.optim, name)
    takes = inspect.signature(kind).parameters
    given = {"lr": learning_rate, **(options or {})}
    if weight_decay or "weight_decay" in takes:
        given["weight_decay"] = weight_decay
    parameters = list(parameters)
    fused = fused and not (name == "SGD" and given.get("momentum"))  # it takes no weights that begin to learn after others
    if fused and "fused" in takes and not set(given) & set(WAYS) and all(each.is_floating_point() for each in parameters):
        given["fused"] = True
    try:
        return kind(parameters, **given)
    except ValueError as error:
        if len(parameters) == 1:
            raise
        raise TaskError(
            f"optimizer={name!r} does not take the parameters of this network: {str(error).rstrip('.')}; use 'AdamW'."
        ) from error
