"""Copying a model, plainly or to work on, and replacing its parts. Without a trailing underscore nothing happens to the input."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from enxuto.copies import copied
from enxuto.errors import ArtifactError
from enxuto.layers.coded import Coded, decode_
from enxuto.layers.computed import MASKED, has_computed, without_computed_
from enxuto.layers.lowrank import THIN


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
