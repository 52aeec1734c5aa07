"""What flows through a model on the calibration batches: ranges of the inputs of its layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from enxuto.task import Batch, evaluating, finite_answers


@torch.no_grad()
def input_ranges(model: nn.Module, batches: Iterable[Batch]) -> dict[str, tuple[float, float]]:
    """The least and the largest value that each leaf layer's first input took, by path; layers that did not run are absent.

    A layer's own input grid, if it has one already, does not clip what is seen.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def watch(path: str) -> object:
        def see(module: nn.Module, inputs: tuple[object, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point() and inputs[0].numel():
                low, high = inputs[0].aminmax()
                before = ranges.get(path, (float("inf"), float("-inf")))
                ranges[path] = (min(before[0], float(low)), max(before[1], float(high)))

        return see

    leaves = [(path, module) for path, module in model.named_modules() if _is_layer(module)]
    hooks = [module.register_forward_pre_hook(watch(path)) for path, module in leaves]
    try:
        with evaluating(model):
            for _ in finite_answers(model, batches):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


def _is_layer(module: nn.Module) -> bool:
    return bool(module._parameters) or "coded" in module._modules
