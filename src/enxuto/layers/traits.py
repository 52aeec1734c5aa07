"""What a kind of layer is: one row a kind, and all that steps, evidence and exporters ask of a layer before they know its values.

A layer is what its first row says, subclasses too; one that no row covers has no weights. Adding a kind is adding a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.rnn import PackedSequence

from enxuto.layers.lowrank import THIN

Given = Sequence[object]


@dataclass(frozen=True)
class Traits:
    """One kind of layer."""

    kind: type[nn.Module]
    weights: tuple[str, ...] = ()  # parameters that are weights, not biases or norms; those that begin so where it ends in "_"
    macs: Callable[[Any, Given, object], int] | None = None  # of one call: the layer, what it was given, what it gave
    product: bool = False  # the inputs times one matrix
    transposed: bool = False  # the same, of a weight that lies inputs first
    looked_up: bool = False  # rows of the weight are taken, not multiplied
    integer: bool = False  # integer runtimes compute its products in 8 bits
    norm: bool = False  # its parameters are coded with the biases
    bias: str | None = None  # the part whose bias is added last of all, "" for the layer itself; None: it may do anything with it
    hidden: str = ""  # why no hook sees what its weights give
    axis: Callable[[Any], int] = lambda module: -1  # of the channels in what it gives
    settle_: Callable[[Any], None] = lambda module: None  # makes its own numbers (in_channels, ...) say what its tensors are


def traits(module: nn.Module) -> Traits:
    """The row of a layer, coded or not.

    >>> traits(nn.LSTM(2, 3)).weights
    ('weight_',)
    """
    return next(row for row in TRAITS if isinstance(module, row.kind))


def standard(kind: type[nn.Module]) -> bool:
    """True for a class of torch's own and for thin layers; a subclass of one may compute anything."""
    return getattr(nn, kind.__name__, None) is kind or kind in THIN


def gates_of(module: nn.RNNBase) -> int:
    """How many gates each hidden unit of a recurrent layer has."""
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)


def _first(given: Given) -> Tensor:
    return next(each for each in given if isinstance(each, Tensor))


def _no_macs(module: nn.Module, given: Given, outputs: object) -> int:
    return 0


def _linear_macs(module: nn.Linear | nn.Bilinear, given: Given, outputs: object) -> int:
    return math.prod(_first(given).shape[:-1]) * module.weight.numel()


def _convolution_macs(module: _ConvNd, given: Given, outputs: object) -> int:
    assert isinstance(outputs, Tensor)
    return outputs.numel() // module.out_channels * module.weight.numel()


def _transposed_macs(module: _ConvNd, given: Given, outputs: object) -> int:
    return _first(given).numel() // module.in_channels * module.weight.numel()


def _recurrent_macs(module: nn.RNNBase, given: Given, outputs: object) -> int:
    first = next(each for each in given if isinstance(each, (Tensor, PackedSequence)))
    data = first.data if isinstance(first, PackedSequence) else first
    weights = [getattr(module, name) for name in module._flat_weights_names if name.startswith("weight")]
    return data.numel() // data.shape[-1] * sum(weight.numel() for weight in weights)


def _cell_macs(module: Any, given: Given, outputs: object) -> int:
    return math.prod(_first(given).shape[:-1]) * int(module.weight_ih.numel() + module.weight_hh.numel())


def _attention_macs(module: nn.MultiheadAttention, given: Given, outputs: object) -> int:
    query = _first(given)
    others = [each for each in given if isinstance(each, Tensor) and each.is_floating_point() and each.ndim == query.ndim]
    key = others[1] if len(others) > 1 else query
    width = module.embed_dim
    samples = 1 if query.ndim == 2 else query.shape[0 if module.batch_first else 1]
    to, source = query.numel() // width // samples, key.numel() // key.shape[-1] // samples
    projections = to * 2 * width * width + source * width * (module.kdim + module.vdim)
    return samples * (projections + 2 * to * source * width)


def _settle_linear_(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


def _settle_convolution_(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a group goes with its channel
        module.groups = first // (module.out_channels // module.groups)
    module.in_channels, module.out_channels = second * module.groups, first


def _settle_transposed_(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels:
        module.groups = first
    module.in_channels, module.out_channels = first, second * module.groups


def _settle_table_(module: nn.Embedding | nn.EmbeddingBag) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _settle_norm_(module: _NormBase) -> None:
    tensors = (module.weight, module.bias, module.running_mean, module.running_var)
    module.num_features = next((len(tensor) for tensor in tensors if tensor is not None), module.num_features)


def _settle_prelu_(module: nn.PReLU) -> None:
    module.num_parameters = len(module.weight)


def _settle_recurrent_(module: Any) -> None:
    rows, columns = module.weight_ih_l0.shape
    module.input_size, module.hidden_size = columns, rows // gates_of(module)
    module.proj_size = len(module.weight_hr_l0) if module.proj_size else 0
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _settle_cell_(module: Any) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


def _spatial(module: _ConvNd) -> int:
    return -1 - len(module.kernel_size)


def _by_name(module: _InstanceNorm) -> int:
    return -1 - int(type(module).__name__[-2])  # InstanceNorm2d


_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_GATES = "no hook sees what the gates give"
_PROJECTIONS = "no hook sees what the projections of its inputs give"
TRAITS: tuple[Traits, ...] = (
    Traits(nn.Linear, ("weight",), _linear_macs, product=True, integer=True, bias="", settle_=_settle_linear_),
    Traits(nn.Bilinear, ("weight",), _linear_macs, bias=""),
    Traits(_ConvTransposeNd, ("weight",), _transposed_macs, transposed=True, bias="", axis=_spatial, settle_=_settle_transposed_),
    Traits(
        _ConvNd, ("weight",), _convolution_macs, product=True, integer=True, bias="", axis=_spatial, settle_=_settle_convolution_
    ),
    Traits(nn.Embedding, ("weight",), _no_macs, looked_up=True, settle_=_settle_table_),
    Traits(nn.EmbeddingBag, ("weight",), _no_macs, looked_up=True, settle_=_settle_table_),
    Traits(nn.RNNBase, ("weight_",), _recurrent_macs, hidden=_GATES, settle_=_settle_recurrent_),
    Traits(nn.RNNCellBase, ("weight_",), _cell_macs, hidden=_GATES, settle_=_settle_cell_),
    Traits(nn.MultiheadAttention, _ATTENTION, _attention_macs, integer=True, bias="out_proj", hidden=_PROJECTIONS),
    Traits(_InstanceNorm, norm=True, bias="", axis=_by_name, settle_=_settle_norm_),
    Traits(_NormBase, norm=True, settle_=_settle_norm_),  # batch norms, whose statistics move what they give as well
    Traits(nn.LayerNorm, norm=True, bias=""),
    Traits(nn.GroupNorm, norm=True, bias="", axis=lambda module: 1),
    *(Traits(kind, bias=kind.last, axis=lambda module: traits(module.up).axis(module.up)) for kind in THIN),
    Traits(nn.PReLU, settle_=_settle_prelu_),
    Traits(nn.Module),
)
