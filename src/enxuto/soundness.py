"""What a model must be before anything is done to it: seen through, finite, run by its own sample inputs, and its copies too."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, leaves, mapped
from enxuto.calls import attempt, evaluating, first_tensor, repeatable
from enxuto.copies import copied
from enxuto.errors import TaskError
from enxuto.layers.computed import without_computed_
from enxuto.layers.state import check_states


def check_plain(model: nn.Module) -> None:
    """Raises TaskError for a model whose layers cannot be seen and replaced: scripted, traced or compiled."""
    for path, module in model.named_modules():
        place = f"'{path}' of the model" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TaskError(f"{place} is TorchScript, whose layers cannot be replaced; pass the nn.Module it was made from.")
        if "_orig_mod" in module._modules:
            raise TaskError(
                f"{place} is the result of torch.compile, which hides what its layers do; pass the network itself, "
                "model._orig_mod, and compile what comes back."
            )
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # torch.export puts one there that refuses
            raise TaskError(f"{place} is a program of torch.export, fixed in one mode; pass the nn.Module it was exported from.")


def check_finite(model: nn.Module) -> None:
    """Raises TaskError, with the path, when a parameter holds NaN or an infinity, or a buffer NaN."""
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise TaskError(f"'{path}' is not initialised yet; call the model once on a batch before making the task.")
        if tensor.device.type == "meta":
            raise TaskError(f"'{path}' is on the meta device and holds no values; load the trained weights first.")
        if tensor.layout != torch.strided:
            raise TaskError(f"'{path}' is a {tensor.layout} tensor; only dense ones can be kept: use .to_dense().")
        if not tensor.is_floating_point():
            continue
        if not tensor.numel() or all(map(math.isfinite, map(float, tensor.detach().aminmax()))):
            continue
        values = tensor.detach()
        fine = torch.isfinite(values) if isinstance(tensor, nn.Parameter) else ~torch.isnan(values)  # a mask of -inf is a buffer
        if not bool(fine.all()):
            bad = int((~fine).sum())
            raise TaskError(f"'{path}' holds {bad} NaN or infinite values of {tensor.numel()}; train or load the model again.")


def check_runs(model: nn.Module, batch: Batch) -> Any:
    """What the model returns for the batch.

    Raises: TaskError when the model fails on it, the batch is empty, or outputs are not finite.
    """
    with evaluating(model):
        outputs = attempt(model, batch, "its own sample inputs")
    output = first_tensor(outputs)
    if output.is_floating_point() and not bool(torch.isfinite(output).all()):
        raise TaskError("the model gives NaN or infinite outputs on its own sample inputs; check weights and inputs.")
    return outputs


def check_copies(model: nn.Module, batch: Batch) -> None:
    """Raises TaskError when a copy of the model does not compute by itself, as every step needs it to.

    After the original has seen other inputs, its copy must still answer the batch as the original did.
    """
    other = mapped(batch, _another)
    try:
        first = _answers(model, batch)
        _answers(model, other)
    except TaskError:  # a model may take none but such inputs as it was given
        first = []
    plain = without_computed_(copied(model, share=True))  # as steps copy it
    check_states(plain)
    second = _answers(plain, batch, model)
    if first and not _alike(first, second) and _alike(first, _answers(model, batch)):
        hooked = [path or "the model" for path, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        raise TaskError(
            "a copy of the model gives other outputs than the model itself: something in it still reads or writes the original, "
            f"such as a hook that names it as a global variable (hooks are at: {', '.join(hooked[:4]) or 'no layer'}); reach "
            "the network through self, or through the hook's own arguments."
        )


def _another(tensor: Tensor) -> Tensor:
    """Other inputs of the same kind: numbers of tokens stay within their range."""
    turned = tensor.flip(tuple(range(tensor.ndim)))
    return turned * 0.5 if tensor.is_floating_point() else turned


def _answers(model: nn.Module, batch: Batch, original: nn.Module | None = None) -> list[Tensor]:
    place = "its own sample inputs" + ("" if original is None else " once its masks and norms are plain weights")
    with evaluating(model), repeatable(model):
        return [tensor.clone() for tensor in leaves(attempt(model, batch, place, original)) if tensor.is_floating_point()]


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """True for outputs that differ by no more than rounding."""
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(
        a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.nan_to_num(0.0, 0.0, 0.0).abs().mean()), equal_nan=True)
        for a, b in pairs
    )
