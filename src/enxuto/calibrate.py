"""What flows through a model on the calibration batches: ranges of the inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import evaluating, finite_answers

SENTINEL = 9.9e3  # the least magnitude of a value that masks: -1e4 plus a small value, -1e9, the smallest float, minus infinity
INFINITE = 1e30  # no measured quantity is as large: a mask, or the sum of several
APART = 100.0  # a mask is so many times as large as every value that is none
ALIKE = 0.01  # masks are one value, or that value with a small one added


def value_range(values: Tensor) -> tuple[float, float]:
    """The least and the largest value, of those that are no masks; 0 and 0 when there is none.

    Masks are values of about 1e4 and more that are all alike on their side of zero and a hundred times as large as all others:
    -1e9 where attention must not look. Large values that vary are measured ones.

    >>> value_range(torch.tensor([-3.4e38, -1.0, 2.0]))
    (-1.0, 2.0)
    >>> value_range(torch.tensor([-1.0, 2.0, 30000.0, 50000.0]))
    (-1.0, 50000.0)
    """
    low, high = (float(value) for value in values.aminmax()) if values.numel() else (0.0, 0.0)
    if low > -SENTINEL and high < SENTINEL:
        return low, high
    values = values[values.abs() < INFINITE]
    near, far = values[values.abs() < SENTINEL], values[values.abs() >= SENTINEL]
    kept = [near]
    for side in (far[far < 0], far[far > 0]):
        if near.numel() and side.numel():
            least, most = side.abs().min(), side.abs().max()
            if most - least <= ALIKE * least and least >= APART * near.abs().max():
                continue
        kept.append(side)
    values = torch.cat(kept)
    return (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)


def input_ranges(model: nn.Module, batches: Iterable[Batch]) -> dict[str, tuple[float, float]]:
    """The least and the largest value that each leaf layer's first input took, by path; layers that did not run are absent.

    Masks do not count (`value_range`). A layer's own input grid, if it has one already, does not clip what is seen.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def see(path: str, given: Tensor) -> None:
        low, high = value_range(given)
        before = ranges.get(path, (float("inf"), float("-inf")))
        ranges[path] = (min(before[0], low), max(before[1], high))

    watch_inputs(model, batches, see)
    return ranges


@torch.no_grad()
def watch_inputs(model: nn.Module, batches: Iterable[Batch], see: Callable[[str, Tensor], None]) -> None:
    """Shows `see` the first input of each leaf layer at each call, with the layer's path, where it holds floats.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """

    def watch(path: str) -> Callable[..., None]:
        def seen(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = next(iter((*args, *kwargs.values())), None)
            if isinstance(given, Tensor) and given.is_floating_point() and given.numel():
                see(path, given)

        return seen

    leaves = [(path, module) for path, module in model.named_modules() if _is_layer(module)]
    hooks = [module.register_forward_pre_hook(watch(path), with_kwargs=True) for path, module in leaves]
    try:
        with evaluating(model):
            for _ in finite_answers(model, batches):
                pass
    finally:
        for hook in hooks:
            hook.remove()


def _is_layer(module: nn.Module) -> bool:
    return bool(module._parameters) or "coded" in module._modules
