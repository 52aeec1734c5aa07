"""Which layers can become thin ones in a row, and what has these in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import float_outputs
from enxuto.errors import TaskError
from enxuto.forms import Ranks, made
from enxuto.functional.lowrank import squares
from enxuto.layers.coded import decode_, plain_class, sources, weight_names
from enxuto.layers.grids import CodedTensor
from enxuto.layers.lowrank import THIN
from enxuto.layers.traits import standard, traits
from enxuto.reads import read_elsewhere
from enxuto.records import Change
from enxuto.select import Patterns, select
from enxuto.sites import Site, sites
from enxuto.surgery import borrowed, replace_


def thinnable(model: nn.Module, layers: Patterns, sample: Batch) -> tuple[dict[str, nn.Module], list[Change]]:
    """The selected layers of the model that can become thin ones, by path, and the others with the reason.

    Raises: LayerError when no layer is selected.
    """
    reads = read_elsewhere(model, sample)
    tied = {place.key: site.places for site in sites(model) for place in site.places}
    found, left = {}, []
    for path, layer in select(model, layers, lambda module: traits(module).product):
        reason = _refusal(model, path, layer, tied) or reads.get(path, "")
        if reason:
            left.append(Change(path, "left alone", reason))
        else:
            found[path] = layer
    return found, left


def _refusal(model: nn.Module, path: str, layer: nn.Module, tied: Mapping[str, Sequence[Site]]) -> str:
    owner = model.get_submodule(path.rpartition(".")[0])
    if "weight" not in weight_names(layer):
        return "its weight is computed from other parameters"
    if not standard(plain_class(type(layer))):
        return f"{type(layer).__name__} is a layer with a forward of its own"
    if getattr(layer, "groups", 1) != 1:
        return "a grouped convolution is no single matrix"
    if not path:
        return "it is the whole model; wrap it, as in nn.Sequential(layer)"
    others = [place.path for place in tied[f"{path}.weight"] if place.module is not layer]
    if others:
        return f"its weight is also that of '{others[0]}', which keeps it"
    if isinstance(owner, THIN):
        return "it is one part of a factorized layer"
    if isinstance(owner, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        return "the layer around it reads its weight directly"
    return ""


@dataclass(frozen=True, eq=False)
class Thinned:
    """The thin layers made of one, and which fraction of the summed squares of its outputs they keep, before they are coded."""

    module: nn.Module
    kept: float


def thinned(path: str, layer: nn.Module, ranks: Ranks, square: Tensor | None) -> Thinned:
    """The layer with these ranks; coded as the layer was. It is left as it is."""
    grids = {name: tensor.grid for name, tensor in sources(layer).items() if isinstance(tensor, CodedTensor)}
    input_grid = layer._modules.get("input_grid")
    layer = borrowed(layer)
    decode_(layer)
    thin = made(layer, ranks, square)
    matrix = Site(path, "weight", layer).matrix()
    whole = squares(matrix, square)
    kept = 1 - squares(matrix - thin.weight.detach().flatten(1), square) / whole if whole else 1.0
    for name, part in thin.named_children() if "weight" in grids else ():
        weight = Site(f"{path}.{name}", "weight", part)
        values = weight.read()
        weight.code_(grids["weight"].suited(values).encode(values, weight.path))  # its groups may not divide the thin layer
    if "weight" in grids and input_grid is not None:
        thin.down.input_grid = input_grid
    if "bias" in grids:
        bias = Site(f"{path}.{thin.last}".rstrip("."), "bias", thin.get_submodule(thin.last))
        bias.code_(grids["bias"].encode(bias.read(), bias.path))
    return Thinned(thin, kept)


def thin_(model: nn.Module, thin: Mapping[str, nn.Module], sample: Batch) -> dict[str, str]:
    """Puts the thin layers in, and takes those out again with which the model does not run; gives the reasons for these."""
    layers = {path: model.get_submodule(path) for path in thin}
    for path, small in thin.items():
        replace_(model, path, small)
    if not _failure(model, sample):
        return {}
    refused = {}
    for path, layer in layers.items():
        replace_(model, path, layer)
    for path, small in thin.items():
        replace_(model, path, small)
        reason = _failure(model, sample)
        if reason:
            replace_(model, path, layers[path])
            refused[path] = f"the model reads what a thin layer has not ({reason})"
    return refused


def _failure(model: nn.Module, sample: Batch) -> str:
    try:
        float_outputs(model, sample)
    except TaskError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"
    return ""
