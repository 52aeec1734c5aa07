"""Second moments of what meets a weight: how much errors in its columns, one alone or two together, move the outputs."""

from __future__ import annotations

import math
from binascii import crc32
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.evidence.kept import Answer, keep, keeps, known
from enxuto.evidence.products import Product, watch
from enxuto.evidence.symmetric import Symmetric, symmetric_bytes
from enxuto.progress import counted
from enxuto.sites import Site

QUESTION = "moments"
UNSEEN = "no product with it is seen on the calibration batches"
TOO_LARGE = "the squares of its inputs are too large for 32 bits"
CHUNKS = 8  # of the inputs of a product, which are in the order of the samples: how far they differ is what chance does
LARGE = 256  # inputs of a chunk, from which on its own second moments are summed: fewer are cheaper by their products
ENOUGH = 32  # inputs for each column, beyond which further batches tell less
LEAST_ROWS = 256  # of the inputs of a product, however few multiply-accumulates it has


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean of x xᵀ over the inputs x that rows start...stop of a weight's matrix meet, in equal parts with their own inputs.

    Shapes: square float32 [groups, in, in], or [groups, in] where its diagonal is all that was asked for; count is how many
    inputs there were; doubt, 0 ... 1, is the part of what lies off the diagonal, squared, that other samples would not show.
    """

    start: int
    stop: int
    square: Tensor
    count: int
    doubt: float = 0.0

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each part, and what their inputs are."""
        size = (self.stop - self.start) // len(self.square)
        for part, square in enumerate(self.square):
            yield slice(self.start + part * size, self.start + (part + 1) * size), square


@dataclass(frozen=True, eq=False)
class Sum:
    """Moments while they are gathered, or wait to be asked for: of what is its own mirror, half is held."""

    start: int
    stop: int
    held: Tensor | Symmetric
    count: int
    doubt: float = 0.0

    def moments(self) -> Moments:
        """As whoever asks gets them."""
        square = self.held.whole() if isinstance(self.held, Symmetric) else self.held
        return Moments(self.start, self.stop, square, self.count, self.doubt)


class MomentsOf:
    """The moments of some weights of a model, gathered as they are asked for, in the order of the network, within `limit_bytes`.

    As many weights as fit are watched in one pass over the batches, and no more than the least number of passes asks for; those
    before are dropped then, so ask in order. Half of each square is held until it is asked for; that of a single weight may be
    larger than the limit, which is half of the weights in float32 unless it is given. What was kept (`evidence.kept`) is read,
    weight by weight, in place of a pass.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Batch], weights: Sequence[Site], limit_bytes: int | None = None, seed: int = 0
    ) -> None:
        self.model, self.batches, self.seed = model, batches, seed
        self.waiting = {weight.key: _sum_bytes(weight) for weight in weights}
        self.limit = limit_bytes or sum(2 * parameter.numel() for parameter in model.parameters())
        self.held: dict[str, list[Sum]] = {}
        self.missing: dict[str, str] = {}

    def __call__(self, key: str) -> list[Moments]:
        """The moments of this weight; none where `missing` has the reason. Raises: TaskError when a batch does not run."""
        if key in self.waiting:
            found = _recalled(self.model, key, self.seed)
            if found is not None:
                del self.waiting[key]
                self.missing |= {} if found[0] else {key: found[1]}
                return found[0]
            few = self._few(key)
            self.waiting = {name: size for name, size in self.waiting.items() if name not in few}
            self.held.clear()
            self.held, missing = _sums(self.model, self.batches, few, self.seed)
            self.missing |= missing
            for name in few:
                _keep(self.model, name, self.seed, self.held.get(name, []), missing.get(name, ""))
        return whole(self.held.pop(key, []))

    def _few(self, key: str) -> list[str]:
        """This weight and those after it that fit beside it, in the first of as few passes as can be, all about as large."""
        names = list(self.waiting)[list(self.waiting).index(key) :]
        sizes = [self.waiting[name] for name in names]
        fewest = len(_runs(sizes, self.limit))
        least = bisect_left(range(self.limit), True, key=lambda limit: len(_runs(sizes, limit)) <= fewest)
        return names[: _runs(sizes, least)[0]]


def moments(
    model: nn.Module, batches: Iterable[Batch], keys: Sequence[str], seed: int = 0, *, diagonal: bool = False
) -> tuple[dict[str, list[Moments]], dict[str, str]]:
    """The moments of the named weights, or only their diagonals, in one pass; and of those without any, why.

    Of a product as many inputs are looked at, drawn evenly, as cost no more than the product itself, and fewer of each further
    batch once there are ENOUGH for each column; at least LEAST_ROWS. Which, depends on the weight and not on those beside it.
    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    found, missing = _sums(model, batches, keys, seed, diagonal=diagonal)
    return {key: whole(each) for key, each in found.items()}, missing


def _sums(
    model: nn.Module, batches: Iterable[Batch], keys: Sequence[str], seed: int, *, diagonal: bool = False
) -> tuple[dict[str, list[Sum]], dict[str, str]]:
    generators = seeds(keys, seed)
    sums = Sums(diagonal=diagonal, own=not diagonal)
    seen = dict.fromkeys(keys, 0)

    def see(product: Product) -> None:
        if product.count:
            inputs = product.inputs(chosen(product, generators[product.key], seen[product.key]))
            seen[product.key] += inputs.shape[1]
            sums.add(product, inputs, inputs)

    return sums.means(keys, watch(model, counted(batches, f"inputs of {named_few(keys)}"), keys, see))


def _recalled(model: nn.Module, key: str, seed: int) -> tuple[list[Moments], str] | None:
    """The kept moments of a weight, or why it has none; None where nothing is kept."""
    answer = known(model, QUESTION, key, seed)
    if answer is None:
        return None
    parts, why = answer.data
    made = [Moments(start, stop, answer.tensors[str(n)], *rest) for n, (start, stop, *rest) in enumerate(parts)]
    return made, why


def _keep(model: nn.Module, key: str, seed: int, sums: Sequence[Sum], why: str) -> None:
    if not keeps(model):
        return
    found = whole(sums)
    parts = [(each.start, each.stop, each.count, each.doubt) for each in found]
    keep(Answer([parts, why], {str(n): each.square for n, each in enumerate(found)}), model, QUESTION, key, seed)


def named_few(keys: Sequence[str]) -> str:
    """The first of some weights, and how many others there are.

    >>> named_few(["fc1.weight", "fc2.weight"])
    'fc1.weight and 1 more'
    """
    return keys[0] + (f" and {len(keys) - 1} more" if keys[1:] else "") if keys else "no weight"


def seeds(keys: Sequence[str], seed: int) -> dict[str, torch.Generator]:
    """A generator for each weight, which depends on its name and not on those beside it."""
    return {key: torch.Generator().manual_seed(seed + crc32(key.encode())) for key in keys}


class Sums:
    """Sums of x yᵀ over what products meet, or of its diagonal alone; `own`, for x = y, half of it, and how much is chance."""

    def __init__(self, *, diagonal: bool = False, own: bool = False) -> None:
        self.diagonal, self.own = diagonal, own
        self.sums: dict[tuple[str, int, int, int], Sum] = {}
        self.apart: dict[tuple[str, int, int, int], list[float]] = {}

    def add(self, product: Product, inputs: Tensor, others: Tensor) -> None:
        """Those of a product, of which some inputs stand for all. Shapes: inputs and others [groups, rows, in]."""
        place = (product.key, product.start, product.stop, product.groups)
        before = self.sums.get(place)
        weight = product.count / inputs.shape[1]
        total = None if before is None else before.held
        held: Tensor | Symmetric
        if self.own:
            held, norms = _own(inputs, weight, total if isinstance(total, Symmetric) else None)
            self.apart.setdefault(place, []).extend(weight**2 * norm for norm in norms)
        else:
            held = _summed(inputs, others, weight, total if isinstance(total, Tensor) else None, self.diagonal)
        self.sums[place] = Sum(product.start, product.stop, held, product.count + (0 if before is None else before.count))

    def means(self, keys: Sequence[str], otherwise: Mapping[str, str]) -> tuple[dict[str, list[Sum]], dict[str, str]]:
        """The means for each weight, and of those without any, why; the sums are used up."""
        found: dict[str, list[Sum]] = {}
        missing = {}
        for place, each in self.sums.items():
            each.held.mul_(1 / each.count)
            if not all(map(math.isfinite, map(float, each.held.aminmax()))):
                missing[place[0]] = TOO_LARGE
            doubt = _doubt(each.held, each.count, self.apart[place]) if isinstance(each.held, Symmetric) else 0.0
            found.setdefault(place[0], []).append(replace(each, doubt=doubt))
        missing |= {key: otherwise.get(key, UNSEEN) for key in keys if key not in found}
        return {key: each for key, each in found.items() if key not in missing}, missing


def whole(sums: Sequence[Sum]) -> list[Moments]:
    """The moments of one weight, so that each row of its matrix is in one."""
    return by_rows([each.moments() for each in sums])


def by_rows(found: Sequence[Moments]) -> list[Moments]:
    """The same, so that each row of the matrix is in one: where several products read it (attention that looks at itself and at
    others with the same weights), their mean over all inputs. Groups that overlap otherwise than as one count as alike.
    """
    ordered = sorted(found, key=lambda each: each.start)
    if all(before.stop <= after.start for before, after in pairwise(ordered)):
        return ordered
    made = []
    for start, stop in pairwise(sorted({edge for each in found for edge in (each.start, each.stop)})):
        here = [each for each in found if each.start <= start and stop <= each.stop]
        total = sum(each.count for each in here)
        square = torch.zeros_like(found[0].square[:1])
        for each in here:
            square += each.square.mean(0, keepdim=True) * (each.count / total)
        doubt = sum(each.doubt * each.count for each in here) / max(1, total)
        made += [Moments(start, stop, square, total, doubt)] if here else []
    return made


def _summed(inputs: Tensor, others: Tensor, weight: float, total: Tensor | None, diagonal: bool) -> Tensor:
    """The sum of x yᵀ, times this weight, on top of the total. Shapes: [groups, rows, in] twice -> as of `Moments.square`."""
    if diagonal:
        square = torch.linalg.vecdot(inputs, others, dim=1).mul_(weight)
        return square if total is None else total.add_(square)
    if total is None:
        return (inputs.transpose(1, 2) @ others).mul_(weight)
    return total.baddbmm_(inputs.transpose(1, 2), others, alpha=weight)


def _own(inputs: Tensor, weight: float, total: Symmetric | None) -> tuple[Symmetric, list[float]]:
    """The sum of x xᵀ, times this weight, on top of the total; and of some chunks, the square of what lies off the diagonal."""
    if inputs.shape[1] < CHUNKS * min(inputs.shape[2], LARGE):
        norms = _norms(inputs)
        if total is None:
            return Symmetric.of(inputs).mul_(weight), norms
        total.add_inputs_(inputs, weight)
        return total, norms
    norms = []
    for few in inputs.chunk(CHUNKS, dim=1):
        own = Symmetric.of(few)
        norms.append(own.apart())
        if total is None:
            total = own.mul_(weight)
        else:
            total.add_(own, weight)
    assert total is not None
    return total, norms


def _norms(inputs: Tensor) -> list[float]:
    """The square of what lies off the diagonal of the sum of x xᵀ, for each of some chunks. Shapes: inputs [groups, rows, in]."""
    found = []
    for few in inputs.chunk(CHUNKS, dim=1):
        size = float(few.abs().max()) or 1.0
        scaled = few / size
        turned = scaled.transpose(1, 2)
        gram = scaled @ turned if scaled.shape[1] < scaled.shape[2] else turned @ scaled
        own = scaled.square().sum(1).double().square().sum()
        found.append(float(gram.square_().sum(dtype=torch.float64) - own) * size**4)
    return found


def _doubt(mean: Symmetric, count: int, norms: Sequence[float]) -> float:
    """How much of the square of what lies off the diagonal is the variance of its mean over the chunks.

    Source: Ledoit, Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", lemma 3.4; towards the
    diagonal as Schäfer, Strimmer 2005, "A shrinkage approach to large-scale covariance matrix estimation".
    """
    seen = mean.apart()
    if not (seen > 0 and math.isfinite(seen)) or len(norms) < 2:
        return 1.0 if len(norms) < 2 else 0.0
    chance = (sum(norms) / count**2 - seen / len(norms)) * len(norms) / (len(norms) - 1)
    return min(1.0, max(0.0, chance / seen))


def chosen(product: Product, generator: torch.Generator, seen: int = 0) -> Tensor:
    """The numbers of the inputs that are looked at, when so many were seen before."""
    rows = product.count * (product.stop - product.start) // product.groups // product.width
    rows = max(LEAST_ROWS, int(rows * min(1.0, ENOUGH * product.width / max(1, seen))))
    if rows >= product.count:
        return torch.arange(product.count)
    return torch.randint(product.count, (rows,), generator=generator).sort().values


def _sum_bytes(weight: Site) -> int:
    return symmetric_bytes(int(getattr(weight.module, "groups", 1)), weight.matrix().shape[1])


def _runs(sizes: Sequence[int], limit: int) -> list[int]:
    """How many neighbours go into each run, where none is larger than the limit but what is so alone.

    >>> _runs([3, 3, 9, 1], 6)
    [2, 1, 1]
    """
    runs, left = [0], limit
    for size in sizes:
        if size > left and runs[-1]:
            runs.append(0)
            left = limit
        runs[-1] += 1
        left -= size
    return runs
