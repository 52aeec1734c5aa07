"""Which layers are worth a checkpoint: blocks of the network, what each would save and the time it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from enxuto.memory.profile import FORWARD, Profile

LARGE = 0.5
"""A block that keeps more than this part of all activations is looked into: as a whole it would save little."""


@dataclass(frozen=True)
class Choice:
    """A block to checkpoint: bytes that need not be kept, and its forward pass as a part of the time of the step."""

    path: str
    saved_bytes: int
    time: float


def choices(model: nn.Module, profile: Profile) -> list[Choice]:
    """The blocks of a model, in its own order, with what a training step says of each.

    A block is a layer of layers. Lists and sequences of blocks, and blocks that keep most of the memory, are opened.
    """
    whole = sum(profile.saved_bytes.values())
    work = sum(moment.work for moment in profile.moments)
    found = []
    for path in _blocks(model, "", profile, whole):
        saved = _inside(path, profile.saved_bytes)
        forward = sum(m.work for m in profile.moments if m.phase == FORWARD and _within(m.path, path))
        if saved:
            found.append(Choice(path, saved, forward / work if work else 0.0))
    return found


def _blocks(module: nn.Module, path: str, profile: Profile, whole: int) -> list[str]:
    found: list[str] = []
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if not list(child.children()):
            continue
        nested = any(list(grandchild.children()) for grandchild in child.children())
        container = isinstance(child, (nn.ModuleList, nn.ModuleDict)) or (isinstance(child, nn.Sequential) and nested)
        if container or (nested and _inside(inner, profile.saved_bytes) > LARGE * whole):
            deeper = _blocks(child, inner, profile, whole)
            found += deeper if deeper or container else [inner]
        else:
            found.append(inner)
    return found


def _inside(path: str, saved: dict[str, int]) -> int:
    return sum(size for layer, size in saved.items() if _within(layer, path))


def _within(layer: str, path: str) -> bool:
    return layer == path or layer.startswith(f"{path}.")
