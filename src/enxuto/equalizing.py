"""Which factors the channels of a link get: what rounding would cost the products around it, for each way to choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from enxuto.evidence.rows import Rows
from enxuto.functional.affine import activation_grid, to_codes
from enxuto.functional.equalize import EQUAL_RANGES, EQUAL_ROWS, Balance, protected, smoothed, whole_powers
from enxuto.groups.links import Link, Part, scale_, vector
from enxuto.layers.affine import Affine
from enxuto.sites import Site, held

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
POWERS = (0.25, 0.5, 0.75)
WORTH = 0.99  # of what products lose as they are: what does not take off this much is left out
MOST_ROWS = 256  # of a weight that are rounded to see what rounding costs
ALIVE = 8  # inputs of a channel that are not zero, from which on their range is believed
SETTLED = 1.01  # factors of a sweep that changes nothing any more
BY_INPUTS: tuple[Balance, ...] = (*map(smoothed, ALPHAS), *map(protected, POWERS))
EVERY: tuple[Balance, ...] = (EQUAL_ROWS, EQUAL_RANGES, *BY_INPUTS)


@dataclass(frozen=True)
class Sweep:
    """All links one after the other, up to `times`: by the balance whose products lose least, or by the first that can be had."""

    balances: tuple[Balance, ...]
    times: int
    search: bool = True


EQUAL = Sweep((EQUAL_ROWS, EQUAL_RANGES), 20, search=False)
PLANS: Mapping[str, Sequence[Sequence[Sweep]]] = {
    "weights": [[EQUAL]],
    "inputs": [[Sweep(BY_INPUTS, 2)]],
    "best": [[EQUAL], [Sweep(EVERY, 2)], [EQUAL, Sweep(EVERY, 2)]],
}
"""Ways to choose the factors of all links, of which the network itself says which is best; a weight is in two links, so twice."""


class Scaled:
    """A copy of a model whose links get factors one after the other, and the inputs that its weights were seen to meet.

    `model` is edited in place, and so are the inputs, which stay those of the model as it is.
    """

    def __init__(self, model: nn.Module, rows: Mapping[str, Sequence[Rows]], grid: Affine, activations: int | None) -> None:
        self.model, self.grid, self.activations = model, grid, activations
        self.rows = {key: [Rows(each.start, each.stop, each.inputs.clone()) for each in given] for key, given in rows.items()}
        self.gains: dict[str, Tensor] = {}  # what the rows of each weight's matrix have been multiplied by

    def choose_(self, link: Link, balances: Sequence[Balance], *, search: bool) -> tuple[Tensor, str] | None:
        """Gives a link its factors; what they are and by what, or None when it stays as it is.

        With `search` the balance whose products lose least when rounded, else the first that can be had.
        """
        best: tuple[Tensor, str] | None = None
        least = WORTH * self.lost(link, torch.ones(link.size, dtype=torch.float64)) if search else 0.0
        for balance in balances:
            factors = balance(self.written(link), self.read(link), self.met(link, mean=balance.mean))
            if factors is None or (balance is EQUAL_ROWS) != (self.read(link) is None):
                continue
            if not all(held(self.model, part.key).dtype in (torch.float32, torch.float64) for part in link.parts):
                factors = whole_powers(factors)
            lost = self.lost(link, factors) if search else -1.0
            if lost < least:
                best, least = (factors, balance.name), lost
            if not search:
                break
        if best is not None:
            self.scale_(link, best[0])
        return best

    def scale_(self, link: Link, factors: Tensor) -> None:
        """Multiplies the link's channels in the model and in the inputs."""
        for part in self._matrices(link):
            by = vector(self.model, part, factors)
            if part.power > 0:
                rows = self._matrix(part.key, self._spread(part, by))[:, 0]
                self.gains[part.key] = self.gains.get(part.key, torch.ones_like(rows)) * rows
            else:
                for each in self.rows.get(part.key, ()):
                    each.inputs.div_(_first(each, self._matrix(part.key, self._spread(part, by))).float()[:, None, :])
        scale_(self.model, link, factors)

    def written(self, link: Link) -> Tensor | None:
        """The range of what writes each unit, of that of its tensor; None where nothing is rounded there. Shapes: -> [units]."""
        return self._ranges(link, [part for part in self._matrices(link) if part.power > 0])

    def read(self, link: Link) -> Tensor | None:
        """The range of what reads each unit."""
        return self._ranges(link, [part for part in self._matrices(link) if part.power < 0])

    def met(self, link: Link, *, mean: bool) -> Tensor | None:
        """The range of what meets each unit: the mean of its magnitudes, or the largest of them. None where none was seen.

        0 for a unit that was seen alive in fewer than ALIVE inputs: what is small by chance is not to be multiplied.
        """
        found = torch.zeros(link.size, dtype=torch.float64)
        for part in self._matrices(link):
            for each in self.rows.get(part.key, ()) if part.power < 0 else ():
                sizes = each.inputs.abs()
                columns = (sizes.mean(1) if mean else sizes.amax(1)) * ((sizes > 0).sum(1) >= ALIVE)
                numbers = self._matrix(part.key, self._spread(part, torch.from_numpy(part.unit_of)))
                _largest_(found, _first(each, numbers).flatten(), columns.double().flatten())
        return found if bool(found.any()) else None

    def lost(self, link: Link, factors: Tensor) -> float:
        """What products around the link lose by rounding, squared, of what they are: where it is read, and of what is written
        as much as the readers make of it."""
        stakes = self._stakes(link)
        total = 0.0
        for key in dict.fromkeys(part.key for part in self._matrices(link)):
            parts = [part for part in self._matrices(link) if part.key == key]
            total += sum(self._lost(key, parts, factors, stakes, each) for each in self.rows.get(key, ()))
        return total

    def _lost(self, key: str, parts: Sequence[Part], factors: Tensor, stakes: Tensor, seen: Rows) -> float:
        reads = [part for part in parts if part.power < 0]
        writes = [part for part in parts if part.power > 0]
        if not reads and self.grid.per != "tensor" and all(part.dim == 0 for part in writes):
            return 0.0  # each row has a scale of its own, and any factor goes into that
        few = self._few(key, seen)
        by = torch.ones((), dtype=torch.float64)
        for part in parts:
            by = by * self._spread(part, vector(self.model, part, factors))
        whole = held(self.model, key).detach()
        values, by = whole[few].double(), by.expand_as(whole)[few]
        rounded = self._rounded(values * by).double() / by
        inputs = seen.inputs.double()
        others = inputs
        for part in reads:
            own = _first(seen, self._matrix(key, self._spread(part, vector(self.model, part, factors))))[:, None, :]
            others = self._rounded_inputs(inputs / own) * own
        one, two = (_rows(seen, self._matrix(key, tensor), few) for tensor in (values, rounded))
        right = inputs @ one.transpose(1, 2)
        wrong = (others @ two.transpose(1, 2) - right).square().mean(1).flatten()
        gains = self.gains.get(key, torch.ones(len(self._matrix(key, whole)), dtype=torch.float64))[seen.start : seen.stop]
        gains = gains if isinstance(few, slice) else gains[few - seen.start]
        found = 0.0
        if reads:
            power = float((right.square().mean(1).flatten() / gains.square()).sum())
            found += float((wrong / gains.square()).sum()) / power if power > 0 else 0.0
        for part in writes:
            stake = self._matrix(key, self._spread(part, part.each(stakes, 0.0)))[:, 0][seen.start : seen.stop]
            found += float((wrong * (stake if isinstance(few, slice) else stake[few - seen.start])).sum())
        return found

    def _few(self, key: str, seen: Rows) -> slice | Tensor:
        """The rows of a weight that are looked at."""
        whole = isinstance(self.model.get_submodule(key.rpartition(".")[0]), _ConvTransposeNd) or len(seen.inputs) > 1
        if whole or seen.stop - seen.start <= MOST_ROWS:
            return slice(None)
        return torch.linspace(seen.start, seen.stop - 1, MOST_ROWS).long()

    def _stakes(self, link: Link) -> Tensor:
        """How much what reads a unit makes of an error in it, of all that it gives. Shapes: -> float64 [units]."""
        found = torch.zeros(link.size, dtype=torch.float64)
        for part in link.parts:
            if part.norm is not None:
                scale = held(self.model, part.key).detach().double().square()
                variance = held(self.model, part.norm.variance).detach().double()
                each = (
                    scale / (variance + part.norm.eps) / (scale * variance / (variance + part.norm.eps)).sum().clamp_min(1e-300)
                )
                _add_(found, torch.from_numpy(part.unit_of), each)
        for part in self._matrices(link):
            for seen in self.rows.get(part.key, ()) if part.power < 0 else ():
                matrix = self._matrix(part.key, held(self.model, part.key).detach().double())
                gains = self.gains.get(part.key, torch.ones(len(matrix), dtype=torch.float64))
                own = seen.matrix(matrix / gains[:, None])
                power = (seen.inputs.double() @ own.transpose(1, 2)).square().mean(1).sum().clamp_min(1e-300)
                numbers = self._matrix(part.key, self._spread(part, torch.from_numpy(part.unit_of)))
                _add_(found, _first(seen, numbers).flatten(), (own.square().sum(1) / power).flatten())
        return found

    def _ranges(self, link: Link, parts: Sequence[Part]) -> Tensor | None:
        if not parts:
            return None
        found = torch.zeros(link.size, dtype=torch.float64)
        for part in parts:
            sizes = held(self.model, part.key).detach().abs().double()
            sizes = sizes / sizes.max().clamp_min(1e-300)
            line = sizes.movedim(part.dim, 0).flatten(1).amax(1)
            _largest_(found, torch.from_numpy(part.unit_of), line)
        return found

    def _matrices(self, link: Link) -> list[Part]:
        """The parts that are weights, and not vectors."""
        return [part for part in link.parts if part.norm is None and held(self.model, part.key).ndim > 1]

    def _spread(self, part: Part, line: Tensor) -> Tensor:
        """Values along the part's dimension, for a tensor of its shape."""
        shape = held(self.model, part.key).shape
        return line.view([-1 if dim == part.dim else 1 for dim in range(len(shape))]).expand(shape)

    def _matrix(self, key: str, values: Tensor) -> Tensor:
        path, _, name = key.rpartition(".")
        return Site(path, name, self.model.get_submodule(path)).matrix(values)

    def _rounded(self, values: Tensor) -> Tensor:
        grid = self.grid.suited(values)
        rows = grid.rows(values.float())
        scale = grid.scales(rows).float()
        return (to_codes(rows, scale, grid.bits) * scale[:, None]).view(values.shape)

    def _rounded_inputs(self, values: Tensor) -> Tensor:
        if self.activations is None:
            return values
        scale, zero = activation_grid(float(values.min()), float(values.max()), self.activations)
        return ((values / scale).round() + zero).clamp(0, 2**self.activations - 1).sub(zero) * scale


def swept_(scaled: Scaled, links: Sequence[Link], sweep: Sweep) -> Iterator[tuple[Link, Tensor, str]]:
    """The factors that links get, in their order, until nothing changes any more."""
    for _ in range(sweep.times):
        most = 1.0
        for link in links:
            chosen = scaled.choose_(link, sweep.balances, search=sweep.search)
            if chosen is not None:
                most = max(most, float(torch.maximum(chosen[0], 1 / chosen[0]).max()))
                yield link, *chosen
        if most < SETTLED:
            return


def _rows(seen: Rows, matrix: Tensor, few: slice | Tensor) -> Tensor:
    """The rows that meet these inputs, of a matrix of which `few` are left. Shapes: -> [groups, rows of a part, in]."""
    return seen.matrix(matrix) if isinstance(few, slice) else matrix[None]


def _first(seen: Rows, matrix: Tensor) -> Tensor:
    """The first row of each part: what is the same for all of them. Shapes: [out, in] -> [groups, in]."""
    return seen.matrix(matrix)[:, 0]


def _largest_(found: Tensor, units: Tensor, values: Tensor) -> None:
    own = units >= 0
    found.scatter_reduce_(0, units[own], values[own], "amax")


def _add_(found: Tensor, units: Tensor, values: Tensor) -> None:
    own = units >= 0
    found.index_add_(0, units[own], values[own])
