"""Training with what will be shipped in view: `rehearse` before, `settle` after, any loop between.

`prepare`/`convert` are the same for a list of lossy steps in the user's own loop, with a `Schedule` that tightens them.
"""

from __future__ import annotations

from torch import Tensor, nn

from enxuto.errors import LayerError
from enxuto.layers.coded import Coded, code_, coded_names, decode_
from enxuto.layers.grids import CodedTensor
from enxuto.layers.rehearsal import Rehearsal
from enxuto.surgery import Weight, twins, weights


def rehearse_(model: nn.Module) -> nn.Module:
    """Makes a compressed model trainable as it is: zeros stay zero, codes follow float leaves, grids learn."""
    for weight in all_weights(model):
        if isinstance(weight.tensor, CodedTensor) or bool((weight.read() == 0).any()):
            leaf = Rehearsal.of(weight.tensor)  # type: ignore[arg-type]
            for twin in twins(model, weight):
                twin.code_(leaf)
    for module in model.modules():  # coded biases and norms
        for name in coded_names(module):
            if isinstance(module.coded[name], CodedTensor):
                code_(module, name, Rehearsal.of(module.coded[name]))
    return model


def settle_(model: nn.Module) -> nn.Module:
    """Ends every rehearsal: codes where there was a grid, plain floats where there was none."""
    settled: dict[int, Tensor | CodedTensor] = {}
    for module in list(model.modules()):
        if not isinstance(module, Coded):
            continue
        for name in coded_names(module):
            leaf = module.coded[name]
            if isinstance(leaf, Rehearsal):
                frozen = settled.setdefault(id(leaf), leaf.frozen())
                module.coded[name] = frozen if isinstance(frozen, CodedTensor) else leaf
        if not any(isinstance(tensor, CodedTensor) for tensor in module.coded.values()):
            input_grid = module._modules.get("input_grid")
            assert input_grid is None, "input grids come with coded weights"
            decode_(module)
        for name in coded_names(module):
            if isinstance(module.coded[name], Rehearsal):
                _uncode_(module, name)
    return model


def _uncode_(module: nn.Module, name: str) -> None:
    """One of several coded names becomes a plain parameter again."""
    value = module.coded[name]().detach().clone()
    del module.coded[name]
    module.register_parameter(name, nn.Parameter(value))


def all_weights(model: nn.Module) -> list[Weight]:
    """The weights of the model; none when no layer kind is known."""
    try:
        return weights(model)
    except LayerError:
        return []

