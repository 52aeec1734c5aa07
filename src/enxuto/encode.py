"""Putting the tensors of a model on a grid, and saying what it cost: what Quantize and Share have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from enxuto.layers.coded import code_, coded_names, dense, weight_names
from enxuto.layers.grids import Affine, CodedTensor, Grid
from enxuto.layers.rehearsal import Rehearsal
from enxuto.select import Patterns, matches
from enxuto.surgery import Weight, leaves_, twins, weights
from enxuto.task import Change

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def code_weights_(model: nn.Module, chosen: Sequence[Weight], grid: Grid, *, together: bool = False) -> list[Change]:
    """Codes every chosen weight, and the layers tied to it with the very same codes; `together` with one scale for all.

    Raises: ShapeError before anything is changed, when one of them does not fit the grid.
    """
    encoded = _encoded([(weight.read(), weight.path) for weight in chosen], grid, together)
    changes = []
    for weight, tensor in zip(chosen, encoded, strict=True):
        values = weight.read()
        for twin in twins(model, weight):
            twin.code_(tensor)
        changes.append(Change(weight.key, f"{grid.bits} bits, {tensor.symbols} values", _error(values, tensor())))
    return changes


def rehearse_on_(model: nn.Module, layers: Patterns, grid: Grid, *, now: bool, together: bool = False) -> None:
    """Lets the float leaves of the chosen weights be seen on the grid, fitted to them as they are; later, unless `now`."""
    chosen = weights(model, layers)
    fresh = [(weight, leaf) for weight, leaf in zip(chosen, leaves_(model, chosen), strict=True) if leaf.grid is None]
    values = [(leaf.kept().detach(), weight.path) for weight, leaf in fresh]
    for (_, leaf), tensor in zip(fresh, _encoded(values, grid, together), strict=True):
        leaf.see_(tensor, now=now)


def _encoded(values: Sequence[tuple[Tensor, str]], grid: Grid, together: bool) -> Sequence[CodedTensor]:
    if together and isinstance(grid, Affine):
        return grid.encode_together(values)
    return [grid.encode(value, path) for value, path in values]


def code_biases_(model: nn.Module, layers: Patterns, bits: int) -> list[Change]:
    """Codes the one-dimensional parameters of weighted layers and norms, one scale each."""
    changes = []
    shared: dict[Tensor | nn.Module, CodedTensor] = {}
    for key, module, name, held in _biases(model, layers):
        if isinstance(held, Tensor):
            values = held.detach()
            tensor = shared.setdefault(held, _bias_grid(values, bits).encode(values, key))
            code_(module, name, tensor)
            changes.append(Change(key, f"{tensor.grid.bits} bits", _error(values, tensor())))
    return changes


def rehearse_biases_on_(model: nn.Module, layers: Patterns, bits: int, *, now: bool) -> None:
    """Lets float leaves of the biases be seen on their grids; later, unless `now`. A zero among them may become another value."""
    shared: dict[Tensor | nn.Module, Rehearsal] = {}
    for key, module, name, held in _biases(model, layers):
        leaf = held if isinstance(held, Rehearsal) else shared.setdefault(held, Rehearsal(dense(held)))
        code_(module, name, leaf)
        if leaf.grid is None:
            values = leaf.leaf.detach()
            leaf.see_(_bias_grid(values, bits).encode(values, key), now=now)


def _biases(model: nn.Module, layers: Patterns) -> list[tuple[str, nn.Module, str, Tensor | nn.Module]]:
    """Key, module, name and tensor (or tensor module) of everything with one dimension in weighted layers and norms."""
    found: list[tuple[str, nn.Module, str, Tensor | nn.Module]] = []
    for path, module in model.named_modules():
        if not matches(path, layers) or not (weight_names(module) or isinstance(module, NORMS)):
            continue
        coded = {name: module.get_submodule(f"coded.{name}") for name in coded_names(module) if name not in weight_names(module)}
        for name, held in [*module._parameters.items(), *coded.items()]:
            flat = held.ndim == 1 and held.numel() > 0 if isinstance(held, Tensor) else isinstance(held, Rehearsal)
            if held is not None and flat:
                found.append((f"{path}.{name}" if path else name, module, name, held))
    return found


def _bias_grid(values: Tensor, bits: int) -> Affine:
    """One scale for all; one bit has no code for zero, which biases often are: those get two."""
    return Affine(2 if bits == 1 and bool((values == 0).any()) else bits, "tensor")


def _error(values: Tensor, coded: Tensor) -> str:
    power = float(values.float().square().sum())
    noise = float((coded.float() - values.float()).square().sum())
    return f"relative error {(noise / power) ** 0.5 if power else 0.0:.2%}"
