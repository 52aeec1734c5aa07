"""Weights that torch computes from other parameters at each call. Masks, weight and spectral norms are there for training,
so a copy takes their present values over; what a network computes in its own way is left, and named.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

_HOOKS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
_NORMS = (_WeightNorm, _SpectralNorm, _Orthogonal)
MASKED = "_had_masks"  # where a layer keeps the names of parameters whose masks were taken over


def has_computed(model: nn.Module) -> bool:
    """True when `without_computed_` would change something."""
    return any(_hooked(module) or _normed(module) for module in model.modules())


@torch.no_grad()
def without_computed_(model: nn.Module) -> nn.Module:
    """Masks of torch.nn.utils.prune, weight norms (both kinds), spectral norms (both) and orthogonal parametrizations end: the
    values they give in eval mode become plain parameters. Which ones had a mask is kept, for `free`."""
    for module in model.modules():
        for hook in _hooked(module):
            before = dict(module._parameters)
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, name := hook._tensor_name)
                vars(module)[MASKED] = (*vars(module).get(MASKED, ()), name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, name := hook.name)
            else:
                remove_spectral_norm(module, name := hook.name)
            gone = [parameter for key, parameter in before.items() if key not in module._parameters]
            getattr(module, name).requires_grad_(any(parameter.requires_grad for parameter in gone if parameter is not None))
            _order_(module)
        for name in _normed(module):
            _end_(module, name)
            _order_(module)
    return model


def free(module: nn.Module, name: str, values: Tensor) -> Tensor | None:
    """Which values of a parameter that is no weight may change in training; None when all may.

    Zeros stay where a mask of torch.nn.utils.prune was, and in two and more dimensions also beside other values, as in weights;
    a bias that began with zeros learns, and so does what is zero throughout and had no mask.
    """
    zeros = values.detach() == 0
    stay = name in vars(module).get(MASKED, ()) or (values.ndim > 1 and not bool(zeros.all()))
    return ~zeros if stay and bool(zeros.any()) else None


def computed(module: nn.Module) -> dict[str, str]:
    """The names of what stays computed in a layer, each with the reason and the remedy."""
    found = {}
    for name, chain in _chains(module).items():
        if name not in _normed(module):
            kinds = " and ".join(type(one).__name__ for one in chain)
            remedy = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}) makes it plain"
            found[name] = f"{kinds} computes it from other parameters at each call; {remedy}"
    return found


def _hooked(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _HOOKS)]


def _normed(module: nn.Module) -> list[str]:
    return [name for name, chain in _chains(module).items() if all(isinstance(one, _NORMS) for one in chain)]


def _chains(module: nn.Module) -> dict[str, Any]:
    """What computes the tensors of a layer, by name."""
    chains = module._modules.get("parametrizations")
    return dict(chains.items()) if isinstance(chains, nn.ModuleDict) else {}


def _end_(module: nn.Module, name: str) -> None:
    """Ends one parametrization. torch's own would change the class, which the original still has."""
    chains = _chains(module)
    trains = any(parameter.requires_grad for parameter in chains.pop(name).eval().parameters())
    values = getattr(module, name).detach().clone(memory_format=torch.contiguous_format)
    kind: Any = type(module)
    if chains:
        module._modules["parametrizations"] = nn.ModuleDict(chains)
        rest = {key: value for key, value in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, rest)
    else:
        del module._modules["parametrizations"]
        module.__class__ = kind.__bases__[0]
    module.register_parameter(name, nn.Parameter(values, requires_grad=trains))


def _order_(module: nn.Module) -> None:
    """Weights before biases, as in a layer that was always plain."""
    if isinstance(module, nn.RNNBase):
        plain = {name: module._parameters[name] for name in module._flat_weights_names if name in module._parameters}
        module._parameters = plain | module._parameters
        if len(plain) == len(module._flat_weights_names):
            module._init_flat_weights()
    else:
        module._parameters = dict(sorted(module._parameters.items(), key=lambda item: "weight" not in item[0]))
