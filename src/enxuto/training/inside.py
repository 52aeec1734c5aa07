"""What layers inside a network return while it runs, by path: for terms that look deeper than at outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from enxuto.batches import Batch, leaves, mapped
from enxuto.calls import call, device_of, evaluating
from enxuto.errors import LayerError

Layers = str | Sequence[str] | Mapping[str, str]
"""Paths or wildcards of layers that student and teacher both have, or the student's paths with the teacher's."""


class Inside:
    """The first tensor that each layer at `paths` returned in the last forward pass of a network, by path.

    A layer that runs several times in a pass has its last one; what runs again in a backward pass does not count.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        self.found: dict[str, Tensor] = {}
        self.open = False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Inside]:
        """Looks at that network inside the block."""
        hooks = [model.get_submodule(path).register_forward_hook(self._keeper(path)) for path in self.paths]
        if hooks:
            hooks.append(model.register_forward_pre_hook(self._begin, prepend=True))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> dict[str, Tensor]:
        """What was found; it is let go here."""
        taken, self.found, self.open = self.found, {}, False
        return taken

    def _begin(self, module: nn.Module, inputs: object) -> None:
        self.found, self.open = {}, True

    def _keeper(self, path: str) -> Any:
        def keep(module: nn.Module, inputs: object, outputs: Any) -> None:
            first = next(leaves(outputs), None) if self.open else None
            if first is not None:
                self.found[path] = first

        return keep


def paired(layers: Layers, student: nn.Module, teacher: nn.Module, term: object) -> dict[str, str]:
    """The teacher's path for each of the student's that `layers` means. Wildcards name whole paths of the student.

    Raises: LayerError when there is no such layer in one of them.
    """
    if isinstance(layers, Mapping):
        pairs = dict(layers)
    else:
        found = [at for pattern in _listed(layers) for at in _matching(pattern, student, term)]
        pairs = dict(zip(found, found, strict=True))
    for network, paths, whose in ((student, pairs.keys(), "student"), (teacher, pairs.values(), "teacher")):
        known = dict(network.named_modules())
        for path in paths:
            if path not in known or not path:
                raise LayerError(_unknown(path, network, whose, term))
    return pairs


def checked_layers(layers: object, term: object) -> Layers:
    """The paths as a term holds them. Raises: LayerError when they are none."""
    texts = [*layers.keys(), *layers.values()] if isinstance(layers, Mapping) else layers
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(each, str) for each in listed):
        raise LayerError(
            f"layers={layers!r} of {type(term).__name__} is {type(layers).__name__}; write a path as 'layer1', a list of them, "
            "or {'of the student': 'of the teacher'}."
        )
    return dict(layers) if isinstance(layers, Mapping) else listed[0] if isinstance(layers, str) else tuple(listed)


def _listed(layers: str | Sequence[str]) -> list[str]:
    return [layers] if isinstance(layers, str) else [*layers]


def _matching(pattern: str, student: nn.Module, term: object) -> list[str]:
    found = [path for path, _ in student.named_modules() if path and fnmatchcase(path, pattern)]
    if not found:
        raise LayerError(_unknown(pattern, student, "student", term))
    return found


def _unknown(path: str, network: nn.Module, whose: str, term: object) -> str:
    known = [name for name, _ in network.named_modules() if name]
    near = get_close_matches(path, known, n=4, cutoff=0.4) or known[:6]
    return (
        f"{type(term).__name__} looks at {path!r}, and the {whose} has no such layer; near are "
        f"{', '.join(map(repr, near)) or 'none, it has no layers inside'}."
    )


def returned(network: nn.Module, sample: Batch, paths: Iterable[str], whose: str, term: object) -> dict[str, Tensor]:
    """What the layers at those paths return for sample inputs, in evaluation mode. Raises: LayerError where none runs."""
    inside = Inside(paths)
    with evaluating(network), inside.watching(network):
        device = device_of(network)
        call(network, mapped(sample, lambda tensor: tensor.to(device)))
    found = inside.take()
    check_reached(inside.paths, found, whose, term)
    return found


def check_reached(paths: Iterable[str], found: Mapping[str, Tensor], whose: str, term: object) -> None:
    """Raises LayerError for a path at which no layer returned a tensor."""
    for path in paths:
        if path not in found:
            raise LayerError(
                f"{type(term).__name__} looks at '{path}', which the {whose}'s forward does not call as a layer that returns a "
                "tensor; name a layer that it calls, or one around it."
            )
