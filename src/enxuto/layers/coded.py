"""Layers whose weights are coded: the layer's own class with weights that decode when they are read.

`code_` gives a layer a class `Coded<Class>` and moves the named parameters into `layer.coded`, a dict of tensor modules.
The layer's own `forward` runs unchanged, so subclasses with a forward of their own keep it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from enxuto.layers.grids import CodedTensor
from enxuto.layers.kept import drop, keep
from enxuto.layers.traits import traits
from enxuto.sizes import parse_bytes

_ORDER = "_order_in_float"  # where a coded layer keeps the order in which it had its parameters


class Coded(nn.Module):
    """Mixed into a layer's class: names in `self.coded` read as decoded tensors, and cannot be assigned."""

    coded: nn.ModuleDict

    def __getattr__(self, name: str) -> Any:
        coded = self.__dict__.get("_modules", {}).get("coded")
        if coded is not None and name in coded:
            return coded[name]()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        coded = self.__dict__.get("_modules", {}).get("coded")
        if coded is not None and name in coded:
            raise AttributeError(
                f"'{name}' is coded and read-only; make the layer plain with enxuto.layers.decode_ to change it."
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles name the plain class, which is found by its name, in place of the one made here."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _bare, (plain_class(type(self)),), state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        grid = self._modules.get("input_grid")
        if grid is not None and args:
            args = (grid(args[0]), *args[1:])
        elif grid is not None:
            name = next(iter(kwargs))  # as the layer calls its input
            kwargs[name] = grid(kwargs[name])
        return super().forward(*args, **kwargs)


class CodedRecurrent(Coded):
    """The same for LSTM, GRU and RNN, which keep their weights in a list besides."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Tensor]) -> None:
        """torch refreshes its list when a module moves; ours is always fresh."""

    def flatten_parameters(self) -> None:
        """Nothing to flatten: the weights are decoded at each call."""

    def _weights_have_changed(self) -> bool:
        return False  # asked by torch at each call, and answered there by decoding every weight


_CODED: dict[type[nn.Module], type[nn.Module]] = {}


def coded_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The coded variant of a layer class, made once."""
    if kind not in _CODED:
        _CODED[kind] = _make(kind)
    return _CODED[kind]


def _make(kind: type[nn.Module]) -> type[nn.Module]:
    mixin = CodedRecurrent if issubclass(kind, nn.RNNBase) else Coded
    return type(f"Coded{kind.__name__}", (mixin, kind), {"__doc__": f"{kind.__name__} with coded weights.", "plain": kind})


def _bare(kind: type[nn.Module]) -> nn.Module:
    made = coded_class(kind)
    return made.__new__(made)


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class a layer had before it was coded; any other class is returned as it is."""
    return getattr(kind, "plain", kind)


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the weights of a layer, coded or not; empty for a kind that has none.

    >>> weight_names(nn.LSTM(2, 3))
    ('weight_ih_l0', 'weight_hh_l0')
    """
    patterns = traits(module).weights
    plain = [name for name, parameter in module._parameters.items() if parameter is not None and parameter.numel()]
    names = [*plain, *coded_names(module)] if patterns else []
    return tuple(n for n in names if any(n == p or (p.endswith("_") and n.startswith(p)) for p in patterns))


def sources(module: nn.Module) -> nn.ModuleDict:
    """What a layer reads its coded or rehearsed tensors from, by name; empty for a plain layer."""
    coded = module._modules.get("coded") if isinstance(module, Coded) else None
    return coded if isinstance(coded, nn.ModuleDict) else nn.ModuleDict()


def coded_names(module: nn.Module) -> tuple[str, ...]:
    """The names under which a layer keeps coded or rehearsed tensors."""
    return tuple(sources(module))


def code_(module: nn.Module, name: str, tensor: nn.Module) -> None:
    """Puts a tensor module (codes, or a rehearsal) in the place of the parameter `name`."""
    if not isinstance(module, Coded):
        module.__class__ = coded_class(type(module))
        vars(module)[_ORDER] = tuple(module._parameters)
        module._modules["coded"] = nn.ModuleDict()
        module.__dict__.pop("_flat_weights", None)
    module._parameters.pop(name, None)
    sources(module)._modules[name] = tensor  # a ModuleDict refuses "keys" and "values", which a parameter may be called


def decode_(module: nn.Module, shared: dict[nn.Module, nn.Parameter] | None = None) -> None:
    """Makes a coded layer plain again: decoded float parameters, its old class, no input grid.

    Layers that are decoded with the same `shared` and had the same tensor module get the same parameter.
    """
    if not isinstance(module, Coded):
        return
    shared = {} if shared is None else shared
    tensors = dict(sources(module).items())
    for tensor in tensors.values():
        if tensor not in shared:
            shared[tensor] = nn.Parameter(tensor().detach().clone())
    order = vars(module).pop(_ORDER)
    del module._modules["coded"]
    module._modules.pop("input_grid", None)
    plain: nn.Module = module
    plain.__class__ = plain_class(type(module))
    for name, tensor in tensors.items():
        module.register_parameter(name, shared[tensor])
    module._parameters = {name: module._parameters[name] for name in order if name in module._parameters} | module._parameters
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def coded_tensors(model: nn.Module) -> dict[str, CodedTensor]:
    """All coded weights of a model by parameter name, as in "fc1.weight"; one shared by two layers comes twice."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in sources(module).items():
            if isinstance(tensor, CodedTensor):
                found[f"{path}.{name}" if path else name] = tensor
    return found


def keep_decoded_(model: nn.Module, limit: str | int | None) -> dict[str, int]:
    """Keeps weights decoded beside their codes, up to `limit` ("200 MB") bytes in all: calls of the model no longer decode them.

    The largest first, as they take longest; what was kept before is dropped first, and None or 0 keeps nothing. Outputs are the
    same to the bit. Weights that change, train or move are decoded again at each call; copies and files keep codes alone. Gives
    the bytes kept, by parameter. Raises: RangeError when the limit is no size.
    >>> from enxuto.layers.affine import Affine
    >>> layer = nn.Linear(8, 4, bias=False)
    >>> code_(layer, "weight", Affine().encode(layer.weight))
    >>> keep_decoded_(layer, "1 kB")
    {'weight': 128}
    """
    left = 0 if limit is None else parse_bytes(limit, "limit", least=0)
    names: dict[CodedTensor, str] = {}
    for name, tensor in coded_tensors(model).items():
        names.setdefault(tensor, name)  # one shared by layers goes by its first name
        drop(tensor)
    found = {}
    for tensor in sorted(names, key=lambda it: -it.decoded_bytes):
        if tensor.decoded_bytes <= left:
            with torch.no_grad():
                keep(tensor, tensor.decoded())
            found[names[tensor]] = tensor.decoded_bytes
            left -= tensor.decoded_bytes
    return found


def dense(tensor: Tensor | nn.Module) -> Tensor:
    """A tensor, decoded if it is a tensor module."""
    with torch.no_grad():
        return (tensor() if isinstance(tensor, nn.Module) else tensor).detach()
