"""Links: channels that can be multiplied where they are written and divided where they are read, proved on a copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.evidence.samples import small_batch
from enxuto.groups.effects import Effect, Factors, Norm
from enxuto.groups.factors import rule_for
from enxuto.groups.rehearse import Stage, faulty, same_numbers
from enxuto.groups.trace import Untraceable, trace
from enxuto.records import Change
from enxuto.sites import first_names, held, with_matrices
from enxuto.surgery import borrowed, to_float

IntArray = npt.NDArray[np.int64]
LEFT = "not equalized"
TRIED = 3.0  # the rehearsal's factors lie between a third and three
UNREAD = "no layer with weights reads what it gives, nor gives what it reads"
PARTLY = "a part of its weight is read, or in a way that cannot be followed"
UNREACHED = "the sample inputs do not reach it"
Role = tuple[str, int, int, Norm | None]


@dataclass(frozen=True, eq=False)
class Part:
    """One dimension of one tensor, multiplied by the factor of each unit to a power: above 0 it writes, below 0 it reads.

    With `norm` it is the scale of a batch norm that makes good what its variance took in. Shapes: unit_of [size of the
    dimension], -1 where no unit is.
    """

    path: str
    name: str
    dim: int
    power: int
    unit_of: IntArray
    norm: Norm | None = None

    @property
    def key(self) -> str:
        """The full name of the tensor."""
        return f"{self.path}.{self.name}" if self.path else self.name

    def each(self, values: Tensor, other: float) -> Tensor:
        """One value of each unit, at every place of the dimension; `other` where no unit is. Shapes: [units] -> [size]."""
        place = torch.from_numpy(self.unit_of)
        return torch.where(place >= 0, values[place.clamp_min(0)], torch.full((), other, dtype=values.dtype))


@dataclass(frozen=True, eq=False)
class Link:
    """Channels of one kind: any positive factor for each of the `size` units leaves the outputs as they are."""

    size: int
    parts: tuple[Part, ...]

    @property
    def writers(self) -> tuple[str, ...]:
        """Paths of the modules that make the channels; of what the model itself holds, its name."""
        return tuple(dict.fromkeys(part.path or part.name for part in self.parts if part.power == 1))

    @property
    def readers(self) -> tuple[str, ...]:
        """Paths of the modules that read them."""
        return tuple(dict.fromkeys(part.path or part.name for part in self.parts if part.power < 0))

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all modules whose tensors change."""
        return tuple(dict.fromkeys(part.path for part in self.parts))


def find_links(model: nn.Module, batch: Batch) -> tuple[list[Link], list[Change]]:
    """The links of a model, in the order of the network, and the layers in none of them, with the reason.

    The model is left alone. Every link was tried once on a copy, in double precision where the model runs in it.
    """
    plain = to_float(model).eval()
    batch = small_batch(plain, batch)
    ledger = Factors()
    try:
        trace(plain, batch, ledger, rule_for)
    except Untraceable as error:
        return [], [Change(path, LEFT, str(error)) for path in with_matrices(plain)]
    effects = ledger.settle()
    _freeze_strays(plain, ledger, effects)
    channel, frozen = ledger.components()
    links = _links(plain, effects, channel, frozen)
    failed = _failed(plain, links, batch)
    kept = [link for index, link in enumerate(links) if index not in failed]
    left = [Change(path, LEFT, why) for index, why in failed.items() for path in links[index].writers]
    seen = {path for link in links for path in link.paths}
    reasons = _reasons(plain, ledger, effects, channel, frozen)
    left += [Change(path, LEFT, reasons.get(path, UNREACHED)) for path in with_matrices(plain) if path not in seen]
    return kept, left


@torch.no_grad()
def scale_(model: nn.Module, link: Link, factors: Tensor) -> None:
    """Multiplies what writes by the factors and divides what reads, in place, in every tensor of the link.

    Shapes: factors float64 [units], above 0. A batch norm's statistics take the factors in; its scale answers for epsilon too.
    """
    made: dict[str, Tensor] = {}
    for part in link.parts:
        tensor = held(model, part.key)
        by = vector(model, part, factors).to(tensor.device)
        values = made.get(part.key, tensor.detach().double())
        made[part.key] = values * by.view([-1 if dim == part.dim else 1 for dim in range(values.ndim)])
    for key, values in made.items():
        tensor = held(model, key)
        tensor.data = values.to(tensor.dtype)


def vector(model: nn.Module, part: Part, factors: Tensor) -> Tensor:
    """What a dimension of a part is multiplied by. Shapes: factors float64 [units] -> float64 [size of the dimension]."""
    own = part.each(factors, 1.0)
    if part.norm is None:
        return own**part.power
    variance = held(model, part.norm.variance).detach().double().cpu()
    return ((own.square() * variance + part.norm.eps) / (variance + part.norm.eps)).sqrt() / own


def _links(model: nn.Module, effects: Sequence[Effect], channel: IntArray, frozen: Mapping[int, str]) -> list[Link]:
    """Channels that are free, by the dimensions of tensors that they are in, and how often in each."""
    roles: dict[Role, IntArray] = {(e.key, e.dim, e.power, e.norm): channel[e.labels.numpy()] for e in effects}
    owned: dict[int, dict[Role, int]] = defaultdict(dict)
    for role, line in roles.items():
        for unit, count in zip(*np.unique(line, return_counts=True), strict=True):
            if int(unit) not in frozen and unit != channel[0]:
                owned[int(unit)][role] = int(count)
    kinds: dict[tuple[tuple[Role, int], ...], list[int]] = defaultdict(list)
    for unit, places in owned.items():
        powers = {power for _, _, power, _ in places}
        if 1 in powers and -1 in powers:
            kinds[tuple(places.items())].append(unit)
    links = [_link([role for role, _ in places], units, roles) for places, units in kinds.items() if len(units) > 1]
    order = {key: place for place, key in enumerate(model.state_dict())}
    return sorted(links, key=lambda link: min(order[part.key] for part in link.parts if part.power == 1))


def _link(places: Sequence[Role], units: Collection[int], lines: Mapping[Role, IntArray]) -> Link:
    first = lines[next(role for role in places if role[2] == 1)]
    wanted = set(units)
    number = {unit: index for index, unit in enumerate(dict.fromkeys(u for u in first.tolist() if u in wanted))}
    parts = []
    for role in places:
        path, _, name = role[0].rpartition(".")
        unit_of = np.array([number.get(unit, -1) for unit in lines[role].tolist()], dtype=np.int64)
        parts.append(Part(path, name, role[1], role[2], unit_of, role[3]))
    return Link(len(number), tuple(parts))


def _failed(model: nn.Module, links: Sequence[Link], batch: Batch) -> dict[int, str]:
    """The links that change the outputs after all, with the reason."""
    if not links:
        return {}
    stage = Stage(model, batch)
    wanted = stage.outputs(stage.own(borrowed(model)))

    def fault(chosen: Sequence[int]) -> str:
        copy = stage.own(borrowed(model))
        for index in chosen:
            chance = torch.Generator().manual_seed(index)
            exponents = torch.rand(links[index].size, generator=chance, dtype=torch.float64) * 2 - 1
            scale_(copy, links[index], TRIED**exponents)
        got = stage.outputs(copy)
        same = len(got) == len(wanted) and all(same_numbers(*pair) for pair in zip(wanted, got, strict=True))
        return "" if same else "with factors in its channels the outputs are others"

    return faulty(len(links), fault)


def _freeze_strays(model: nn.Module, ledger: Factors, effects: Sequence[Effect]) -> None:
    """Tensors that no file keeps are not multiplied."""
    kept = model.state_dict()
    for effect in effects:
        if effect.key not in kept:
            ledger.freeze(effect.labels, f"'{effect.key}' is in no state dict", "")


def _reasons(
    model: nn.Module, ledger: Factors, effects: Sequence[Effect], channel: IntArray, frozen: Mapping[int, str]
) -> dict[str, str]:
    """The first reason for each module, also for one that holds what another holds under its name."""
    found = dict.fromkeys(ledger.otherwise, PARTLY)
    for effect in sorted(effects, key=lambda each: -each.power):
        why = next((frozen[unit] for unit in np.unique(channel[effect.labels.numpy()]).tolist() if unit in frozen), UNREAD)
        if found.get(effect.key, UNREAD) in (UNREAD, PARTLY):
            found[effect.key] = why
    reasons: dict[str, str] = {}
    for key, first in first_names(model.named_parameters(remove_duplicate=False)).items():
        if first in found:
            reasons.setdefault(key.rpartition(".")[0], found[first])
    return reasons
