"""Which layers a step works on: shell wildcards over module paths, in the order of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from enxuto.errors import LayerError

Patterns = str | Sequence[str]


def check_patterns(layers: object) -> None:
    """Raises LayerError when `layers` is neither a wildcard nor a list of them."""
    if not isinstance(layers, str) and not (isinstance(layers, Sequence) and all(isinstance(it, str) for it in layers)):
        raise LayerError(f"layers={layers!r} is {type(layers).__name__}; write a wildcard as 'fc*', or a list of them.")


def matches(path: str, layers: Patterns) -> bool:
    """True when a pattern names the path or a module above it; a pattern that starts with "!" takes paths away.

    >>> matches("blocks.0.fc1", "blocks.*"), matches("blocks.0.fc1", ["*", "!*.fc1"])
    (True, False)
    """
    wanted = False
    for pattern in [layers] if isinstance(layers, str) else layers:
        inverted = pattern.startswith("!")
        bare = pattern[1:] if inverted else pattern
        if fnmatchcase(path, bare) or fnmatchcase(path, f"{bare}.*"):
            wanted = not inverted
    return wanted


def select(model: nn.Module, layers: Patterns, suits: Callable[[nn.Module], bool]) -> list[tuple[str, nn.Module]]:
    """The (path, module) pairs whose path matches and which `suits` accepts; a module that occurs twice comes once.

    Raises: LayerError when a pattern matches no module at all, or no matching module suits.
    """
    check_patterns(layers)
    modules = [(path, module) for path, module in model.named_modules() if path or suits(model)]
    modules = modules or [("", model)]
    for pattern in [layers] if isinstance(layers, str) else layers:
        if pattern != "*" and not any(matches(path, pattern.removeprefix("!")) for path, _ in modules):
            some = ", ".join(repr(path) for path, _ in modules[:6])
            raise LayerError(f"layers={pattern!r} matches nothing in this model; its layers are {some}, ...")
    found = [(path, module) for path, module in modules if (matches(path, layers)) and suits(module)]
    if not found:
        kinds = ", ".join(sorted({type(module).__name__ for _, module in modules}))
        owners = [path for path, module in modules if "parametrizations" in module._modules and matches(path, layers)]
        said = f"layers={layers!r} selects no layer this step can treat; the model is made of {kinds}."
        if owners:
            said += (
                f" The weight of '{owners[0]}' is computed from other parameters; "
                "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes it plain."
            )
        raise LayerError(said)
    return found
