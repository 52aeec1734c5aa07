"""Putting the tensors of a model on a grid, and saying what it cost: what Quantize and Share have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from enxuto.layers.coded import code_, coded_names, weight_names
from enxuto.layers.grids import Affine, CodedTensor, Grid
from enxuto.select import Patterns, matches
from enxuto.surgery import Weight, leaves_, twins, weights
from enxuto.task import Change

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def code_weights_(model: nn.Module, chosen: Sequence[Weight], grid: Grid) -> list[Change]:
    """Codes every chosen weight, and the layers tied to it with the very same codes.

    Raises: ShapeError before anything is changed, when one of them does not fit the grid.
    """
    encoded = [grid.encode(weight.read(), weight.path) for weight in chosen]
    changes = []
    for weight, tensor in zip(chosen, encoded, strict=True):
        values = weight.read()
        for twin in twins(model, weight):
            twin.code_(tensor)
        changes.append(Change(weight.key, f"{grid.bits} bits, {tensor.symbols} values", _error(values, tensor())))
    return changes


def rehearse_on_(model: nn.Module, layers: Patterns, grid: Grid, *, now: bool) -> None:
    """Lets the float leaves of the chosen weights be seen on the grid, fitted to them as they are; later, unless `now`."""
    chosen = weights(model, layers)
    for weight, leaf in zip(chosen, leaves_(model, chosen), strict=True):
        if leaf.grid is None:
            leaf.see_(grid.encode(leaf.kept().detach(), weight.path), now=now)


def code_biases_(model: nn.Module, layers: Patterns, bits: int) -> list[Change]:
    """Codes the one-dimensional parameters of weighted layers and norms, one scale each."""
    grid = Affine(bits, "tensor")
    changes = []
    shared: dict[Tensor, CodedTensor] = {}
    for path, module in model.named_modules():
        if not matches(path, layers) or not (weight_names(module) or isinstance(module, NORMS)):
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is None or parameter.ndim != 1 or not parameter.numel() or name in coded_names(module):
                continue
            values, key = parameter.detach(), f"{path}.{name}" if path else name
            if parameter not in shared:  # one bit has no code for zero, which biases often are: they get two
                fits = replace(grid, bits=2) if bits == 1 and bool((values == 0).any()) else grid
                shared[parameter] = fits.encode(values, key)
            tensor = shared[parameter]
            code_(module, name, tensor)
            changes.append(Change(key, f"{tensor.grid.bits} bits", _error(values, tensor())))
    return changes


def _error(values: Tensor, coded: Tensor) -> str:
    power = float(values.float().square().sum())
    noise = float((coded.float() - values.float()).square().sum())
    return f"relative error {(noise / power) ** 0.5 if power else 0.0:.2%}"
