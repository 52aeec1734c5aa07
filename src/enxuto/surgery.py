"""Reading, replacing and plainly copying parts of a model. Functions without a trailing underscore leave their input alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from enxuto.copies import copied
from enxuto.errors import ArtifactError
from enxuto.layers.coded import Coded, code_, decode_, weight_names
from enxuto.layers.computed import MASKED, computed, has_computed, without_computed_
from enxuto.layers.grids import CodedTensor
from enxuto.layers.lowrank import THIN
from enxuto.layers.rehearsal import Rehearsal
from enxuto.records import Change
from enxuto.select import Patterns, matches, select


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy for a step to work on: nothing done to it reaches the original, and what only training needs is gone.

    Masks, weight and spectral norms are taken over: their weights are plain parameters. A decoder that Hugging Face wrote does
    not return its cache, which no runtime takes and no goal judges.
    """
    return _prepared_(copied(model))


def borrowed(model: nn.Module) -> nn.Module:
    """The same whose parameters are those of the model, and take no memory: to read, or to put others in their place, never to
    write into. Before a step gives it away, `copies.separate_` it."""
    return _prepared_(copied(model, share=True))


def _prepared_(made: nn.Module) -> nn.Module:
    made = without_computed_(made)
    for module in made.modules():
        config: Any = vars(module).get("config")
        if _is_pretrained(module) and _is_pretrained(config) and getattr(config, "use_cache", False) is True:
            config.use_cache = False
    if _is_pretrained(made):
        vars(made)["save_pretrained"] = functools.partial(_save_pretrained, made)
    return made


def _is_pretrained(value: object) -> bool:
    """True for networks and configurations of Hugging Face, which say by their class how they are kept."""
    return hasattr(type(value), "save_pretrained")


def _save_pretrained(self: Any, *arguments: Any, **named: Any) -> Any:
    """Hugging Face's own way to keep a network, whose folder holds plain layers and nothing else.

    Raises: ArtifactError for a network with coded or thin layers, which from_pretrained could not read back.
    """
    other = [path for path, module in self.named_modules() if isinstance(module, (Coded, *THIN))]
    if other:
        raise ArtifactError(
            f"save_pretrained keeps plain layers, and '{other[0]}' is {type(self.get_submodule(other[0])).__name__}: from_"
            "pretrained could not read the folder back; use enxuto.save(model, 'small.nxt', original=network)."
        )
    return type(self).save_pretrained(self, *arguments, **named)


def replace_(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one at `path`, under every name that one has; hooks go on with it, and what had masks."""
    old = model.get_submodule(path)
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = module
    module.train(old.training)
    for name, hooks in vars(old).items():
        if name.startswith(("_forward_", "_backward_", "_is_full_backward_hook")):
            vars(module)[name] = hooks
    for part in module.modules() if MASKED in vars(old) else ():
        vars(part)[MASKED] = vars(old)[MASKED]


def to_float(model: nn.Module) -> nn.Module:
    """A copy in which every coded layer is the plain torch layer with decoded weights; input grids are gone.

    Plain parameters are those of the model, as `borrowed` gives them: nobody may write into them.
    """
    plain = borrowed(model)
    shared: dict[nn.Module, nn.Parameter] = {}  # tied layers stay tied
    for module in list(plain.modules()):
        decode_(module, shared)
    return plain


def without_computed(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with plain parameters where masks, weight or spectral norms compute them."""
    return duplicate(model) if has_computed(model) else model


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of one layer, plain or coded: where it is and how to read and write it."""

    path: str
    name: str
    module: nn.Module

    @property
    def key(self) -> str:
        """The parameter's full name, "fc1.weight"."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def tensor(self) -> Tensor | CodedTensor | Rehearsal:
        """What the layer keeps: a parameter, or a tensor module."""
        if isinstance(self.module, Coded) and self.name in self.module.coded:
            return self.module.coded[self.name]  # type: ignore[return-value]
        return self.module._parameters[self.name]  # type: ignore[return-value]

    def read(self) -> Tensor:
        """The values, decoded and detached."""
        tensor = self.tensor
        with torch.no_grad():
            return (tensor if isinstance(tensor, Tensor) else tensor()).detach()

    def write_(self, values: Tensor) -> None:
        """Puts other values of the same shape in; a coded weight keeps its grid."""
        tensor = self.tensor
        if isinstance(tensor, CodedTensor):
            tensor.become_(tensor.recode(values))
        elif isinstance(tensor, Rehearsal):
            tensor.leaf.data = values.to(tensor.leaf)  # whoever else holds the old values keeps them
        else:
            tensor.data = values.to(tensor)

    def code_(self, tensor: nn.Module) -> None:
        """Puts a tensor module in the weight's place."""
        code_(self.module, self.name, tensor)


def weights(model: nn.Module, layers: Patterns = "*") -> list[Weight]:
    """The weights (not biases, not norms) of all layers that match; one that two layers share comes once.

    Raises: LayerError when no layer matches.
    """
    found, seen = [], set()
    for path, module in select(model, layers, lambda module: bool(weight_names(module))):
        for name in weight_names(module):
            weight = Weight(path, name, module)
            if id(weight.tensor) not in seen:
                seen.add(id(weight.tensor))
                found.append(weight)
    return found


def twins(model: nn.Module, weight: Weight) -> list[Weight]:
    """Every place that holds the very same tensor: the weight itself, and layers tied to it."""
    return [
        Weight(path, name, module)
        for path, module in model.named_modules()
        for name in weight_names(module)
        if Weight(path, name, module).tensor is weight.tensor
    ]


def left_in_float(model: nn.Module, layers: Patterns = "*") -> Iterator[Change]:
    """The parameters of two or more dimensions that no layer kind covers, and that a step therefore leaves alone."""
    for path, module in model.named_modules():
        for name, reason in computed(module).items():
            if matches(path or name, layers):
                yield Change(f"{path}.{name}" if path else name, "left in float", reason)
        if isinstance(module, ParametrizationList):
            continue
        names = weight_names(module)
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.ndim < 2 or name in names or not matches(path or name, layers):
                continue
            key = f"{path}.{name}" if path else name
            why = f"a parameter that {type(module).__name__} holds itself; no layer kind covers it"
            yield Change(key, "left in float", why)


def leaves_(model: nn.Module, chosen: list[Weight]) -> list[Rehearsal]:
    """The rehearsals of the chosen weights, made where there is none yet, under every name a weight has."""
    found = []
    for weight in chosen:
        leaf = weight.tensor
        if not isinstance(leaf, Rehearsal):
            leaf = Rehearsal.of(leaf)
            for twin in twins(model, weight):
                twin.code_(leaf)
        found.append(leaf)
    return found
