"""The two ends of every training: `rehearse_` gives layers float leaves that see what ships, `settle_` keeps what they became."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from enxuto.copies import without_graphs_
from enxuto.layers.activations import ActivationGrid, LearningGrid
from enxuto.layers.coded import Coded, code_, decode_, dense, sources
from enxuto.layers.computed import free
from enxuto.layers.grids import CodedTensor
from enxuto.layers.rehearsal import Rehearsal
from enxuto.records import Change
from enxuto.select import Patterns
from enxuto.sites import held_by, left_in_float, sites


def rehearse_(model: nn.Module) -> nn.Module:
    """Makes a compressed model trainable as it is: zeros stay zero, codes follow float leaves, grids learn, those of inputs too.

    Which zeros: all of weights, and of other parameters what `free` leaves out.
    """
    for weight in sites(model):
        if isinstance(weight.tensor, CodedTensor) or bool((weight.read() == 0).any()):
            weight.rehearsal_()
    shared: dict[nn.Module | Tensor, Rehearsal] = {}  # tied parameters stay tied
    for module in list(model.modules()):  # biases, norms, and parameters that no layer kind covers
        if isinstance(module, (Rehearsal, ParametrizationList)):
            continue
        for name, held in held_by(module).items():
            if isinstance(held, CodedTensor):
                if held not in shared:
                    shared[held] = Rehearsal(dense(held), keep=free(module, name, dense(held)))
                    shared[held].see_(held)
            elif isinstance(held, Tensor) and held.requires_grad and held not in shared:
                keep = free(module, name, held)
                if keep is not None:
                    shared[held] = Rehearsal(held, keep=keep)
            if held in shared:
                code_(module, name, shared[held])
        grid = module._modules.get("input_grid")
        if isinstance(grid, ActivationGrid):
            module._modules["input_grid"] = LearningGrid(grid, learns=any(p.requires_grad for p in module.parameters()))
    return model


def came_of(model: nn.Module, layers: Iterable[Patterns]) -> tuple[list[Change], list[Change], dict[str, float]]:
    """What steps that tightened in a training made of the weights at `layers`, what they left alone, and figures of it all."""
    patterns = list(layers)
    chosen = {weight.key: weight for each in patterns for weight in sites(model, each)}.values()
    changes, zeros, total = [], 0, 0
    for weight in chosen:
        tensor, values = weight.tensor, weight.read()
        gone = values.numel() - int(values.count_nonzero())
        coded = f", codes of {tensor.grid.bits} bits" if isinstance(tensor, CodedTensor) else ""
        changes.append(Change(weight.key, f"{gone / max(1, values.numel()):.1%} zeros{coded}", "tightened while it trained"))
        zeros, total = zeros + gone, total + values.numel()
    left = {change.path: change for each in patterns for change in left_in_float(model, each)}
    return changes, list(left.values()), {"sparsity": zeros / total, "weights": float(total)} if total else {}


def settle_(model: nn.Module) -> nn.Module:
    """Ends every rehearsal: codes where there was a grid, plain floats where there was none."""
    settled: dict[nn.Module, nn.Parameter | CodedTensor] = {}  # tied layers stay tied
    for module in list(model.modules()):
        for name, leaf in list(sources(module).items()):
            if not isinstance(leaf, Rehearsal):
                continue
            if leaf not in settled:
                frozen = leaf.frozen()
                if isinstance(frozen, Tensor):
                    frozen = nn.Parameter(frozen, requires_grad=leaf.leaf.requires_grad)
                settled[leaf] = frozen
            now = settled[leaf]
            if isinstance(now, CodedTensor):
                code_(module, name, now)
            else:
                del sources(module)[name]
                module.register_parameter(name, now)
        grid = module._modules.get("input_grid")
        if isinstance(grid, LearningGrid):
            module._modules["input_grid"] = grid.settled()
        if isinstance(module, Coded) and not sources(module):
            decode_(module)
    return without_graphs_(model)
