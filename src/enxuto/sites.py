"""Where a weight is: the layer by which it goes, the others that are tied to it, and how it lies there as a matrix.

A walk of the model finds all; what may be read past these layers is for `evidence.products` and `reads` to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from enxuto.layers.coded import code_, dense, sources, weight_names
from enxuto.layers.computed import computed
from enxuto.layers.grids import CodedTensor
from enxuto.layers.rehearsal import Rehearsal
from enxuto.layers.traits import traits
from enxuto.records import Change
from enxuto.select import Patterns, matches, select

HELD = 2.0  # how much worse than on a fitted grid values may lie on the grid that a parameter has


@dataclass(frozen=True, eq=False)
class Site:
    """A weight, or another parameter, of a layer, plain or coded; and where the very same one is besides."""

    path: str
    name: str
    module: nn.Module
    tied: tuple[Site, ...] = ()

    @property
    def key(self) -> str:
        """The parameter's full name, "fc1.weight"."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def places(self) -> tuple[Site, ...]:
        """This one and those tied to it."""
        return self, *self.tied

    @property
    def looked_up(self) -> bool:
        """True where a layer takes rows of it, and multiplies nothing."""
        return any(traits(place.module).looked_up for place in self.places)

    @property
    def tensor(self) -> Tensor | CodedTensor | Rehearsal:
        """What the layer keeps: a parameter (or a buffer), or a tensor module."""
        held = held_by(self.module)
        return held[self.name] if self.name in held else getattr(self.module, self.name)

    @property
    def shape(self) -> Sequence[int]:
        """That of its values."""
        tensor = self.tensor
        return tensor.leaf.shape if isinstance(tensor, Rehearsal) else tensor.shape

    def read(self) -> Tensor:
        """The values, decoded and detached."""
        return dense(self.tensor)

    def write_(self, values: Tensor) -> None:
        """Puts other values of the same shape in, for all who hold it; a coded weight keeps its grid."""
        tensor = self.tensor
        if isinstance(tensor, CodedTensor):
            tensor.become_(tensor.recode(values))
        elif isinstance(tensor, Rehearsal):
            tensor.leaf.data = values.to(tensor.leaf)  # whoever else holds the old values keeps them
        else:
            tensor.data = values.to(tensor)

    def settle_(self, values: Tensor) -> str:
        """Puts other values in; a coded parameter keeps its grid where that holds them about as well as one fitted to them.
        Says where it got another, to be told of in a record."""
        tensor = self.tensor
        if not isinstance(tensor, CodedTensor):
            self.write_(values)
            return ""
        values = values.float()
        held, fresh = tensor.recode(values), tensor.grid.encode(values, self.key)
        errors = [float((each() - values).square().sum()) for each in (held, fresh)]
        fits = errors[0] <= HELD**2 * errors[1]
        made = held if fits else fresh
        made.dtype = tensor.dtype
        tensor.become_(made)
        return "" if fits else f", on a new grid of {tensor.grid.bits} bits"

    def scale_(self, gain: Tensor) -> None:
        """Multiplies the row of each output channel, or all by one number; codes stay where scales can take it instead.

        Shapes: gain [out] or [1].
        """
        values, tensor = self.read(), self.tensor
        made = tensor.scaled(self._times(values.float(), gain), gain) if isinstance(tensor, CodedTensor) else None
        if isinstance(tensor, CodedTensor) and made is not None:
            made.dtype = tensor.dtype
            tensor.become_(made)
        else:
            self.write_(self._times(values, gain))

    def _times(self, values: Tensor, gain: Tensor) -> Tensor:
        gain = gain.to(values)
        if values.ndim == 1 or gain.numel() == 1:
            return values * gain
        return self.shaped(self.matrix(values) * gain[:, None])

    def code_(self, tensor: nn.Module) -> None:
        """Puts a tensor module in its place, everywhere."""
        for place in self.places:
            code_(place.module, place.name, tensor)

    def rehearsal_(self) -> Rehearsal:
        """Its rehearsal, made and put in its place where there is none yet."""
        tensor = self.tensor
        if isinstance(tensor, Rehearsal):
            return tensor
        made = Rehearsal.of(tensor)
        self.code_(made)
        return made

    def matrix(self, values: Tensor | None = None) -> Tensor:
        """It, or anything else of its shape, as a matrix [out, in], whose row is what one output channel multiplies inputs with;
        a convolution's row meets a patch of its group's channels.

        >>> Site("", "weight", nn.ConvTranspose1d(4, 6, 3, groups=2)).matrix().shape
        torch.Size([6, 6])
        """
        values = self.read() if values is None else values
        if not traits(self.module).transposed:
            return values.flatten(1)
        parts = values.reshape(self._groups, -1, *values.shape[1:])  # [in, out / groups, ...]
        return parts.transpose(1, 2).reshape(values.shape[1] * self._groups, -1)

    def shaped(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: values of its shape."""
        shape = tuple(self.shape)
        if traits(self.module).transposed:
            matrix = matrix.reshape(self._groups, shape[1], shape[0] // self._groups, *shape[2:]).transpose(1, 2)
        return matrix.reshape(shape)

    @property
    def _groups(self) -> int:
        return int(vars(self.module)["groups"])


def held(model: nn.Module, key: str) -> Tensor:
    """The parameter or buffer of this name."""
    path, _, name = key.rpartition(".")
    found = getattr(model.get_submodule(path), name)
    assert isinstance(found, Tensor)
    return found


def held_by(module: nn.Module) -> dict[str, Any]:
    """The parameters that a layer itself has, by name: plain ones, then coded and rehearsed ones as their tensor modules."""
    plain = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    return plain | dict(sources(module).items())


def sites(model: nn.Module, layers: Patterns | None = None) -> list[Site]:
    """Each weight (no bias, no norm) once: by the first layer that holds it, of all or of those that match.

    Raises: LayerError when no layer matches.
    """
    every = [Site(path, name, module) for path, module in model.named_modules() for name in weight_names(module)]
    chosen = every
    if layers is not None:
        paths = {path for path, _ in select(model, layers, lambda module: bool(weight_names(module)))}
        chosen = [site for site in every if site.path in paths]
    found: dict[int, Site] = {}
    same = together(every)
    for site in chosen:
        if id(site.tensor) not in found:
            others = (other for other in same[id(site.tensor)] if other is not site)
            found[id(site.tensor)] = replace(site, tied=tuple(others))
    return list(found.values())


def together(places: Iterable[Site]) -> dict[int, list[Site]]:
    """Those that hold the very same tensor, by its id."""
    found: dict[int, list[Site]] = {}
    for place in places:
        found.setdefault(id(place.tensor), []).append(place)
    return found


def parameters(model: nn.Module) -> Iterator[Site]:
    """Every place of every parameter, plain or coded."""
    return (Site(path, name, module) for path, module in model.named_modules() for name in held_by(module))


def first_names(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """The first name of each of these tensors, by every name that it has."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def with_matrices(model: nn.Module) -> list[str]:
    """The paths of the layers of a plain model that hold parameters of two or more dimensions."""
    return [
        path for path, module in model.named_modules() if any(p is not None and p.ndim > 1 for p in module._parameters.values())
    ]


def left_in_float(model: nn.Module, layers: Patterns = "*") -> Iterator[Change]:
    """The parameters of two or more dimensions that no layer kind covers, and that a step therefore leaves alone."""
    for path, module in model.named_modules():
        for name, reason in computed(module).items():
            if matches(path or name, layers):
                yield Change(Site(path, name, module).key, "left in float", reason)
        if isinstance(module, ParametrizationList):
            continue
        names = weight_names(module)
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.ndim < 2 or name in names or not matches(path or name, layers):
                continue
            why = f"a parameter that {type(module).__name__} holds itself; no layer kind covers it"
            yield Change(Site(path, name, module).key, "left in float", why)
