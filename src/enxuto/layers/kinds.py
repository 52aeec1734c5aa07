"""Describing the shape of a layer in plain data, and building it again: what a file may name, and nothing else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from enxuto.errors import ArtifactError, LayerError
from enxuto.layers.coded import coded_names, plain_class
from enxuto.layers.lowrank import THIN
from enxuto.layers.rules import FORBIDDEN, checked

KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Identity,
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.PReLU,
        nn.Embedding,
        nn.EmbeddingBag,
        nn.RNN,
        nn.LSTM,
        nn.GRU,
        *THIN,
    )
}

# Kinds of which the numbers tell the shapes of all tensors, beside those that a file may build; the low-rank ones hold none.
_JUDGED = {kind for kind in KINDS.values() if kind not in (nn.Identity, *THIN)} | {
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNCell,
    nn.LSTMCell,
    nn.GRUCell,
}
_UNBUILDABLE = (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError)

# Attributes that follow the sizes of a layer's tensors; a step that cuts channels changes these and nothing else.
SIZES = (
    *("in_features", "out_features", "in1_features", "in2_features", "in_channels", "out_channels", "groups"),
    *("num_features", "num_channels", "num_groups", "normalized_shape", "num_parameters", "num_embeddings"),
    *("embedding_dim", "input_size", "hidden_size", "proj_size", "embed_dim", "num_heads", "head_dim", "kdim", "vdim"),
)


def describe(module: nn.Module) -> dict[str, Any]:
    """The arguments that build a layer of the same shape; those at their default are left out.

    Raises: LayerError for a kind that no file may name.
    >>> describe(nn.Linear(4, 3))
    {'in_features': 4, 'out_features': 3}
    """
    kind = plain_class(type(module))
    if KINDS.get(kind.__name__) is not kind:
        raise LayerError(f"{kind.__name__} is no kind a file may name; the kinds are {', '.join(sorted(KINDS))}.")
    return {name: "inf" if value == math.inf else value for name, value in _arguments(module, kind).items()}


def follows(module: nn.Module) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the tensors that the layer's own numbers ask for; None for a kind without a rule.

    A layer made anew from these numbers is the rule; nothing takes memory. Subclasses are judged as what they come from.
    Raises: ArtifactError when no layer can be made from these numbers, or it would have others.
    """
    kind = next((base for base in type(module).__mro__ if base in _JUDGED), None)
    if kind is None:
        return None
    try:
        arguments = _arguments(module, kind)
        with torch.device("meta"):
            made = kind(**arguments)
    except _UNBUILDABLE as error:
        raise ArtifactError(f"no {kind.__name__} has the numbers that the file says ({error}); it is damaged.") from error
    for name in SIZES:
        if name in made.__dict__ and module.__dict__.get(name) != made.__dict__[name]:
            raise ArtifactError(
                f"the file says {name}={module.__dict__.get(name)!r} of a {kind.__name__} where {made.__dict__[name]!r} "
                "follows from its other numbers; it is damaged."
            )
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items() if "." not in name}


def _arguments(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    coded = coded_names(module)
    for name, parameter in _parameters(kind).items():
        if name in FORBIDDEN:
            continue
        if name == "bias":
            value = _has_bias(module, coded)
        elif name == "add_bias_kv":
            value = getattr(module, "bias_k", None) is not None
        else:
            value = getattr(module, name, parameter.default)
        if parameter.default is inspect.Parameter.empty or not _same(value, parameter.default):
            arguments[name] = value
    return arguments


def _has_bias(module: nn.Module, coded: tuple[str, ...]) -> bool:
    name = "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias"
    value = True if name in coded else getattr(module, name)
    return value if isinstance(value, bool) else value is not None


def build(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The layer on the meta device: shapes without memory.

    Raises: ArtifactError for a kind or an argument that is not known.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtifactError(f"the file names a layer kind {kind!r} that is not known; the kinds are {', '.join(sorted(KINDS))}.")
    plain = checked(kind, _parameters(KINDS[kind]), arguments)
    try:
        with torch.device("meta"):
            return KINDS[kind](**plain)
    except _UNBUILDABLE as error:
        raise ArtifactError(f"the file's layer {kind}({plain}) cannot be built: {error}; the file is damaged.") from error


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:  # LSTM(*args, **kwargs) names its arguments in the class above
        if "__init__" not in base.__dict__:
            continue
        named = inspect.signature(base.__dict__["__init__"]).parameters
        hidden = ("self", "mode") if base is nn.RNNBase else ("self",)  # LSTM, GRU and RNN set their mode themselves
        found |= {n: p for n, p in named.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and n not in hidden}
        if not any(p.kind == p.VAR_KEYWORD for p in named.values()):
            break
    if kind is nn.RNN:  # takes it from its **kwargs
        found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    return found


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, tuple) and isinstance(default, int):
        return all(item == default for item in value)
    return bool(value == default)
