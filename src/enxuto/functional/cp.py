"""CP: a convolution as three thin ones, 1x1 to `rank` channels, a kernel of its own for each, 1x1 to all outputs.

The kernel W [out, in, places] is near a sum of `rank` terms, each an output's, an input's and a place's vector. The terms begin
as the leading singular ones of each kernel place, once places are turned to their leading directions: such are orthogonal, and
all of them are W. From there one factor after the other is the regression on the other two. Sums of terms that grow without end
and cancel each other are what makes CP diverge: a ridge on the norms of terms, which falls from round to round, keeps them away.
The last factor, `up`, is the regression of the outputs on what the others let through.
Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition"; Phan et al. 2020,
"Stable low-rank tensor decomposition for compression of convolutional neural network", for the terms that cancel, and for places
as one axis (a row's and a column's kernel each lost more on 3 x 3: docs/ranks.md).
Mitchell, Ye, De Sterck 2020, "Nesterov acceleration of alternating least squares for canonical tensor decomposition".
Deviation: inputs are weighed by their second moments, and outputs regressed by those of the patches; the papers train instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from enxuto.functional.lowrank import leading, outputs_square, times

ROUNDS, FEWEST = 40, 5
MOMENTUM = 0.8  # of a round's step, taken once more before the next: 40 rounds then do what 80 do
WORK = 2e10  # multiply-accumulates that the rounds of one kernel may take, beyond the fewest
RIDGES = 1e-2, 1e-4  # of the squared norm of a term, in the first round and in the last
LAST = 1e-6  # of the mean of the diagonal, in the regression of the outputs
TINY = 1e-300


def split_cp(weight: Tensor, rank: int, square: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of so many terms of which the outputs lose little, term by term of equal norms.

    Shapes: weight [out, in, places], square [in * places, in * places] -> down [rank, in], core [rank, places], up [out, rank].
    """
    up, down, core = _split(weight, rank, square)[0]
    norms = [factor.norm(dim=0) for factor in (up, down, core)]
    size = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    up, down, core = (factor * (size / norm.clamp_min(TINY)) for factor, norm in zip((up, down, core), norms, strict=True))
    return down.T.to(weight), core.T.to(weight), up.to(weight)


def lost_by_terms(weight: Tensor, ranks: list[int], square: Tensor | None = None) -> tuple[list[float], float]:
    """What the outputs lose with each of these numbers of terms, and without any, summed squares.

    Shapes: weight [out, in, places], square [in * places, in * places].
    """
    whole = float(outputs_square(weight.flatten(1), square).diagonal().sum())
    return [max(0.0, whole - _split(weight, rank, square)[1]) for rank in ranks], whole


def most_terms(out: int, inputs: int, places: int) -> int:
    """So many terms are the kernel itself."""
    return min(out, inputs) * places


def _split(weight: Tensor, rank: int, square: Tensor | None) -> tuple[list[Tensor], float]:
    """The factors up [out, rank], down [in, rank], core [places, rank], and how much of the outputs they explain: those of the
    start, if the rounds did not better them."""
    root = _channel_root(square, weight.shape[1])
    slices = weight.double().permute(2, 0, 1)
    slices = slices.contiguous() if root is None else slices @ root
    start = _start(slices, rank)
    found = (_regressed(weight, _unheard(factors, root), square) for factors in (start, _rounds(slices, start)))
    return max(found, key=lambda each: each[1])


def _start(slices: Tensor, rank: int) -> list[Tensor]:
    """The leading singular terms of every place. Shapes: slices [places, out, in]."""
    gram = slices.flatten(1) @ slices.flatten(1).T
    places = leading(gram, len(gram))
    left, values, right = torch.linalg.svd(torch.einsum("koi,kl->loi", slices, places), full_matrices=False)
    first = values.flatten().argsort(descending=True, stable=True)[:rank]
    place, term = first // values.shape[1], first % values.shape[1]
    return [left[place, :, term].T * values[place, term], right[place, term].T, places[:, place]]


def _rounds(slices: Tensor, start: list[Tensor]) -> list[Tensor]:
    """Regressions of each factor on the others, in turns. Shapes: slices [places, out, in]."""
    up, down, core = start
    rounds, before = _affordable(slices.numel(), up.shape[1]), (up, core)
    for number in range(rounds):
        ridge = RIDGES[0] * (RIDGES[1] / RIDGES[0]) ** (number / max(1, rounds - 1))
        leap = [new + MOMENTUM * (new - old) for new, old in zip((up, core), before, strict=True)]
        before, (ups, cores) = (up, core), map(_unit, leap)
        down = _unit(_solved(torch.einsum("kir,kr->ir", slices.transpose(1, 2) @ ups, cores), ups, cores, ridge))
        seen = slices @ down
        core = _unit(_solved(torch.einsum("kor,or->kr", seen, ups), ups, down, ridge))
        up = _solved(torch.einsum("kor,kr->or", seen, core), down, core, ridge)
    return [up, down, core]


def _affordable(size: int, rank: int) -> int:
    return int(min(ROUNDS, max(FEWEST, WORK // (2 * size * rank + rank**3))))


def _unit(factor: Tensor) -> Tensor:
    return factor / factor.norm(dim=0).clamp_min(TINY)


def _solved(seen: Tensor, one: Tensor, other: Tensor, ridge: float) -> Tensor:
    """The factor whose terms with the two others, of norm one, come nearest. Shapes: seen [n, rank] -> [n, rank]."""
    gram = (one.T @ one) * (other.T @ other)
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(seen.T, torch.linalg.cholesky(gram)).T


def _channel_root(square: Tensor | None, channels: int) -> Tensor | None:
    """The lower R of R Rᵀ: the mean moments of the input channels over the places of a patch, and as much again of each alone.

    Deviation: with none of each alone the inputs' terms follow the inputs more than the weights, and lose more.
    """
    if square is None:
        return None
    places = len(square) // channels
    mean = torch.einsum("ikjk->ij", square.view(channels, places, channels, places)).double() / places
    root: Tensor = torch.linalg.cholesky(mean + mean.diagonal().mean().clamp_min(TINY) * torch.eye(channels).to(mean))
    return root


def _unheard(factors: list[Tensor], root: Tensor | None) -> list[Tensor]:
    up, down, core = factors
    return [up, down if root is None else torch.linalg.solve_triangular(root.T, down, upper=True), core]


def _regressed(weight: Tensor, factors: list[Tensor], square: Tensor | None) -> tuple[list[Tensor], float]:
    """The factors with the `up` that explains most of the outputs, and how much that is."""
    down, core = _unit(factors[1]), _unit(factors[2])
    terms = torch.einsum("ir,kr->rik", down, core).flatten(1)
    seen = terms if square is None else times(terms, square)
    both = seen @ terms.T
    crossed = seen @ weight.flatten(1).double().T
    both.diagonal().add_(LAST * both.diagonal().mean() + TINY)
    up = torch.cholesky_solve(crossed, torch.linalg.cholesky(both))
    return [up.T, down, core], float((2 * crossed - both @ up).mul(up).sum())
