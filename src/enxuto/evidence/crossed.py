"""What a weight meets in a network that has been changed, beside what it met before: one product after the other, in pairs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.evidence.moments import Moments, Sums, chosen, named_few, seeds, whole
from enxuto.evidence.products import Product, Watch
from enxuto.progress import counted
from enxuto.sites import Site

MANY = 32  # times at most that both networks run on the batches, however many weights are asked for
UNPAIRED = "the changed network multiplies it in another order than before"


class CrossedOf:
    """Moments of what weights meet in a copy, as it is when they are asked for, and of that with what they meet in the original.

    Ask in the order of the network, and change each weight before the next: then the next knows what became of its inputs. Of
    more than MANY weights, neighbours are watched together.
    """

    def __init__(
        self, model: nn.Module, copy: nn.Module, batches: Iterable[Batch], weights: Sequence[Site], seed: int = 0
    ) -> None:
        self.model, self.copy, self.batches, self.seed = model, copy, batches, seed
        self.waiting = [weight.key for weight in weights]
        self.together = math.ceil(len(self.waiting) / MANY)
        self.held: dict[str, list[tuple[Moments, Moments]]] = {}
        self.missing: dict[str, str] = {}

    def __call__(self, key: str) -> list[tuple[Moments, Moments]]:
        """Of this weight the means of y yᵀ and of x yᵀ, for inputs y in the copy and x in the original; none where `missing`
        has the reason. Raises: TaskError when a batch does not run."""
        if key in self.waiting:
            start = self.waiting.index(key)
            few = self.waiting[start : start + self.together]
            self.waiting = self.waiting[start + len(few) :]
            self.held.clear()
            self.held, missing = crossed(self.model, self.copy, self.batches, few, self.seed)
            self.missing |= missing
        return self.held.pop(key, [])


def crossed(
    model: nn.Module, copy: nn.Module, batches: Iterable[Batch], keys: Sequence[str], seed: int = 0
) -> tuple[dict[str, list[tuple[Moments, Moments]]], dict[str, str]]:
    """Both moments of the named weights, in one pass of both networks; and of those without any, why.

    As many inputs are looked at as `moments` does, the same in both. Raises: TaskError when either fails on a batch.
    """
    generators = seeds(keys, seed)
    own, across = Sums(), Sums()
    pending: deque[tuple[Product, Tensor, Tensor]] = deque()
    unpaired: dict[str, str] = {}

    def before(product: Product) -> None:
        if product.count:
            few = chosen(product, generators[product.key])
            pending.append((product, few, product.inputs(few)))

    def after(product: Product) -> None:
        if not product.count:
            return
        met, few, inputs = pending.popleft() if pending else (None, None, None)
        if met is None or few is None or inputs is None or _place(met) != _place(product):
            unpaired[product.key] = UNPAIRED
            return
        others = product.inputs(few)
        own.add(product, others, others)
        across.add(product, inputs, others)

    original, changed = Watch(model, keys, before), Watch(copy, keys, after)
    for batch in counted(batches, f"inputs of {named_few(keys)}"):
        original([batch])
        changed([batch])
        unpaired |= {product.key: UNPAIRED for product, _, _ in pending}
        pending.clear()
    found, missing = own.means(keys, changed.otherwise)
    with_them, more = across.means(keys, changed.otherwise)
    missing = missing | more | unpaired
    both = {key: zip(whole(each), whole(with_them[key]), strict=True) for key, each in found.items() if key not in missing}
    return {key: list(each) for key, each in both.items()}, missing


def _place(product: Product) -> tuple[str, int, int, int, int]:
    return product.key, product.start, product.stop, product.groups, product.count
