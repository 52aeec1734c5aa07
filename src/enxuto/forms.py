"""The forms that a layer may get: a row each, with what its parts cost, what it offers, and the layer that has it.

A form is a pure function in `functional/`, a class in `layers/lowrank.py`, and a row here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from enxuto.functional.cp import lost_by_terms, most_terms
from enxuto.functional.kronecker import lost_by_products, most_products
from enxuto.functional.lowrank import lost_by_rank
from enxuto.functional.tucker import lost_by_ranks
from enxuto.layers.lowrank import CPConv, KroneckerLinear, LowRankConv, LowRankLinear, TuckerConv

Part = tuple[int, int]
"""How many weights a part has, and how many times each of them is multiplied."""
Losses = Iterator[tuple[tuple[int, ...], float]]
"""Ranks, and which fraction of the summed squares of the outputs is lost with them."""

IN_RANKS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Of a convolution's inputs: how many channels may be left of them. Between two of these little changes."""

TERMS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
"""Of so many terms as have the weights of the layer: how many there may be."""

COLUMNS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Of the inputs of a matrix: how many columns the inner matrices of a Kronecker sum may have, about."""

FEW_OUTPUTS = 16
"""Of a matrix: two thin ones have few ranks to offer then. Of those with more, Kronecker sums kept less in five of seven."""


@dataclass(frozen=True)
class Ranks:
    """Of which form a layer is, and of which ranks."""

    form: str
    ranks: tuple[int, ...]


WHOLE = Ranks("", ())
"""A layer as it is."""


@dataclass(frozen=True)
class Shape:
    """A layer's size: of how many outputs, inputs and places of its kernel its weight is, and at how many places of a batch it
    reads inputs and gives outputs."""

    out: int
    inputs: int
    kernel: int
    places_in: int = 1
    places_out: int = 1
    linear: bool = False

    def weights(self, ranks: Ranks) -> int:
        """How many weights a layer of these ranks has."""
        return sum(count for count, _ in self._parts(ranks))

    def macs(self, ranks: Ranks) -> int:
        """How many multiply-accumulates the batch takes with these ranks."""
        return sum(count * times for count, times in self._parts(ranks))

    def grows(self, ranks: Ranks) -> bool:
        """True where these ranks save no weights, or cost more multiply-accumulates."""
        return ranks != WHOLE and (self.weights(ranks) >= self.weights(WHOLE) or self.macs(ranks) > self.macs(WHOLE))

    def named(self, ranks: Ranks) -> str:
        """Ranks in words, each beside the most that it could be."""
        return FORMS[ranks.form].words(self, *ranks.ranks)

    def _parts(self, ranks: Ranks) -> Sequence[Part]:
        if ranks == WHOLE:
            return ((self.out * self.inputs * self.kernel, self.places_out),)
        return FORMS[ranks.form].parts(self, *ranks.ranks)


@dataclass(frozen=True)
class Row:
    """One form; `parts` and `words` take a layer's size and its ranks, `ranked` a size and the rank that a user gives."""

    fits: Callable[[Shape], bool]
    parts: Callable[..., Sequence[Part]]
    words: Callable[..., str]
    losses: Callable[[Tensor, Shape, Tensor | None], Losses]
    ranked: Callable[[Shape, int], tuple[int, ...]]
    kind: Callable[[nn.Module], Any]
    auto: Callable[[Shape], bool] = lambda shape: True  # tried where no form is asked for


def _svd_losses(weight: Tensor, shape: Shape, square: Tensor | None) -> Losses:
    for rank, lost in _parts_of(lost_by_rank(weight.flatten(1), square)):
        yield (rank,), lost


def _tucker_losses(weight: Tensor, shape: Shape, square: Tensor | None) -> Losses:
    few = sorted({max(1, round(shape.inputs * part)) for part in IN_RANKS})
    for in_rank, lost in zip(few, lost_by_ranks(weight.flatten(2), few, square), strict=True):
        yield from (((in_rank, rank), part) for rank, part in _parts_of(lost))


def _cp_losses(weight: Tensor, shape: Shape, square: Tensor | None) -> Losses:
    even = shape.out * shape.inputs * shape.kernel / (shape.out + shape.inputs + shape.kernel)
    most = most_terms(shape.out, shape.inputs, shape.kernel)
    ranks = sorted({min(most, max(1, int(even * part))) for part in TERMS})
    lost, whole = lost_by_terms(weight.flatten(2), ranks, square)
    yield from (((rank,), each / whole if whole > 0 else 0.0) for rank, each in zip(ranks, lost, strict=True))


def _kronecker_losses(weight: Tensor, shape: Shape, square: Tensor | None) -> Losses:
    for block in _blocks(shape):
        size = block[0] * block[1]
        even = shape.out * shape.inputs / (size + shape.out * shape.inputs // size)
        most = most_products(shape.out, shape.inputs, block)
        terms = sorted({min(most, max(1, int(even * part))) for part in TERMS})
        lost, whole = lost_by_products(weight, terms, block, square)
        yield from (((count, *block), each / whole if whole > 0 else 0.0) for count, each in zip(terms, lost, strict=True))


def _blocks(shape: Shape) -> list[tuple[int, int]]:
    """The blocks that are tried, the largest first: few rows, and columns near some parts of the inputs."""
    rows = next((size for size in range(2, shape.out) if shape.out % size == 0), 0)
    columns = [size for size in range(2, shape.inputs) if shape.inputs % size == 0]
    if not rows or not columns:
        return []
    near = (min(columns, key=lambda size: abs(math.log(size / (shape.inputs * part)))) for part in COLUMNS)
    return [(rows, size) for size in dict.fromkeys(near)]


def _parts_of(lost: Tensor) -> Iterator[tuple[int, float]]:
    """Each rank from 1 on, and which part of what rank 0 loses is lost with it; nothing of nothing."""
    whole, *others = lost.tolist()
    return ((rank, each / whole if whole > 0 else 0.0) for rank, each in enumerate(others, 1))


FORMS: dict[str, Row] = {
    "svd": Row(
        fits=lambda shape: True,
        parts=lambda shape, rank: ((rank * shape.inputs * shape.kernel, shape.places_out), (shape.out * rank, shape.places_out)),
        words=lambda shape, rank: f"rank {rank} of {min(shape.out, shape.inputs * shape.kernel)}",
        losses=_svd_losses,
        ranked=lambda shape, rank: (rank,),
        kind=lambda layer: LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv,
    ),
    "tucker": Row(
        fits=lambda shape: shape.kernel > 1,
        parts=lambda shape, few, rank: (
            (few * shape.inputs, shape.places_in),
            (rank * few * shape.kernel, shape.places_out),
            (shape.out * rank, shape.places_out),
        ),
        words=lambda shape, few, rank: f"ranks {few} of {shape.inputs} and {rank} of {shape.out}",
        losses=_tucker_losses,
        ranked=lambda shape, rank: (min(rank, shape.inputs), min(rank, shape.out)),
        kind=lambda layer: TuckerConv,
    ),
    "cp": Row(
        fits=lambda shape: shape.kernel > 1,
        parts=lambda shape, rank: (
            (rank * shape.inputs, shape.places_in),
            (rank * shape.kernel, shape.places_out),
            (shape.out * rank, shape.places_out),
        ),
        words=lambda shape, rank: f"{rank} terms of {most_terms(shape.out, shape.inputs, shape.kernel)}",
        losses=_cp_losses,
        ranked=lambda shape, rank: (min(rank, most_terms(shape.out, shape.inputs, shape.kernel)),),
        kind=lambda layer: CPConv,
    ),
    "kronecker": Row(
        fits=lambda shape: shape.linear and bool(_blocks(shape)),
        parts=lambda shape, terms, rows, columns: (
            (terms * rows * columns, shape.places_out * (shape.inputs // columns)),
            (terms * (shape.out // rows) * (shape.inputs // columns), shape.places_out * rows),
        ),
        words=lambda shape, terms, rows, columns: (
            f"{terms} products of {shape.out // rows} x {shape.inputs // columns} and {rows} x {columns}"
        ),
        losses=_kronecker_losses,
        ranked=lambda shape, rank: (min(rank, most_products(shape.out, shape.inputs, _blocks(shape)[0])), *_blocks(shape)[0]),
        kind=lambda layer: KroneckerLinear,
        auto=lambda shape: shape.out <= FEW_OUTPUTS,
    ),
}
Form = Literal["auto", "svd", "tucker", "cp", "kronecker"]


def fits(form: Form, shape: Shape) -> bool:
    """True where a layer of this size can have the form that is asked for."""
    return form == "auto" or FORMS[form].fits(shape)


def forms_of(form: Form, shape: Shape) -> list[str]:
    """The forms that a layer of this size may get: the one asked for, or two thin ones where that does not fit."""
    fitting = [name for name, row in FORMS.items() if row.fits(shape) and (form == name or (form == "auto" and row.auto(shape)))]
    return fitting or ["svd"]


def form_of_rank(form: Form, shape: Shape, rank: int) -> Ranks:
    """The ranks that a layer gets where a user gives one number: of two thin ones, unless a form is asked for."""
    [name, *_] = forms_of(form, shape)
    return Ranks(name, FORMS[name].ranked(shape, rank))


def losses(weight: Tensor, shape: Shape, form: Form, square: Tensor | None) -> Iterator[tuple[Ranks, float]]:
    """Which fraction of the summed squares of its outputs a layer loses with each of the ranks that it may get.

    Shapes: weight [out, in, ...], square [in * ..., in * ...].
    """
    for name in forms_of(form, shape):
        for ranks, lost in FORMS[name].losses(weight, shape, square):
            yield Ranks(name, ranks), lost


def made(layer: nn.Module, ranks: Ranks, square: Tensor | None) -> Any:
    """The thin layers in place of a plain one."""
    return FORMS[ranks.form].kind(layer).of(layer, ranks.ranks, square)
