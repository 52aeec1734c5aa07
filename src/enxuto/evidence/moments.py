"""Second moments of what meets a weight: how much errors in its columns, one alone or two together, move the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from enxuto.evidence.products import Product, watch
from enxuto.layers.matrices import matrix_of
from enxuto.sizes import tensor_bytes
from enxuto.surgery import Weight
from enxuto.task import Batch

TOO_LARGE = "the squares of its inputs are too large for 32 bits"
LEAST_ROWS = 256  # of the inputs of a product, however few multiply-accumulates it has


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean of x xᵀ over the inputs x that rows start...stop of a weight's matrix meet, in equal parts with their own inputs.

    Shapes: square float32 [groups, in, in]; count is how many inputs there were.
    """

    start: int
    stop: int
    square: Tensor
    count: int


class MomentsOf:
    """The moments of some weights of a model, gathered as they are asked for, in the order of the network, within `limit_bytes`.

    As many weights as fit are watched in one pass over the batches; those before are dropped then, so ask in order. The moments
    of a single weight may be larger than the limit.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Batch], weights: Sequence[Weight], limit_bytes: int | None = None, seed: int = 0
    ) -> None:
        self.model, self.batches, self.seed = model, batches, seed
        self.limit = limit_bytes or sum(tensor_bytes(each) for each in model.parameters())
        self.waiting = {weight.key: _square_bytes(weight) for weight in weights}
        self.held: dict[str, list[Moments]] = {}
        self.missing: dict[str, str] = {}

    def __call__(self, key: str) -> list[Moments]:
        """The moments of this weight; none where `missing` has the reason. Raises: TaskError when a batch does not run."""
        if key in self.waiting:
            chosen: list[str] = []
            left = self.limit
            for name in list(self.waiting)[list(self.waiting).index(key) :]:
                left -= self.waiting[name]
                if chosen and left < 0:
                    break
                chosen.append(name)
            self.waiting = {name: size for name, size in self.waiting.items() if name not in chosen}
            self.held.clear()
            self.held, otherwise = moments(self.model, self.batches, chosen, self.seed)
            self.missing |= {
                name: otherwise.get(name, "no calibration batch reaches it") for name in chosen if name not in self.held
            }
        return self.held.pop(key, [])


def moments(
    model: nn.Module, batches: Iterable[Batch], keys: Sequence[str], seed: int = 0
) -> tuple[dict[str, list[Moments]], dict[str, str]]:
    """The moments of the named weights, in one pass; and how weights are read that no matrix product shows.

    Of a product as many inputs are looked at, drawn evenly, as cost no more than the product itself, and at least LEAST_ROWS.
    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[tuple[str, int, int], Moments] = {}

    def see(product: Product) -> None:
        if product.key not in keys or not product.count:
            return
        inputs = product.inputs(_chosen(product, generator))
        square = inputs.transpose(1, 2) @ inputs
        square *= product.count / inputs.shape[1]
        place = (product.key, product.start, product.stop)
        if place in sums:
            sums[place].square.add_(square)
            square = sums[place].square
        count = product.count + (sums[place].count if place in sums else 0)
        sums[place] = Moments(product.start, product.stop, square, count)

    otherwise = watch(model, batches, see)
    found: dict[str, list[Moments]] = {}
    for (key, _, _), each in sums.items():
        if bool(torch.isfinite(each.square.div_(each.count)).all()):
            found.setdefault(key, []).append(each)
        else:
            otherwise[key] = TOO_LARGE
    return {key: each for key, each in found.items() if otherwise.get(key) != TOO_LARGE}, otherwise


def _chosen(product: Product, generator: torch.Generator) -> Tensor:
    """The numbers of the inputs that are looked at."""
    rows = max(LEAST_ROWS, product.count * (product.stop - product.start) // product.groups // product.width)
    if rows >= product.count:
        return torch.arange(product.count)
    return torch.randint(product.count, (rows,), generator=generator).sort().values


def _square_bytes(weight: Weight) -> int:
    width = matrix_of(weight.module, weight.read()).shape[1]
    return 4 * width * width * int(getattr(weight.module, "groups", 1))
