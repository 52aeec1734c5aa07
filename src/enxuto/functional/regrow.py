"""Which weights come back while a network is trained sparse, and how many each layer has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def exchanged(weight: Tensor, keep: Tensor, worth: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The next pattern, and what of it is in both: a `share` of the weights that stay goes, the smallest; as many come back,
    those of most worth among all that are out then.

    Shapes: weight, keep (bool) and worth as the weight -> two of bool, the same; as many stay as before.
    Source: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (SET: worth by chance); Evci et al. 2020, "Rigging the lottery", algorithm 1 (RigL: the gradients' size).
    >>> weight, keep = torch.tensor([3.0, 0.1, 0.0, 0.0]), torch.tensor([True, True, False, False])
    >>> exchanged(weight, keep, worth=torch.tensor([9.0, 0.0, 1.0, 2.0]), share=0.5)[0]
    tensor([ True, False, False,  True])
    """
    alive = int(keep.count_nonzero())
    count = min(round(share * alive), keep.numel() - alive)
    sizes = weight.detach().abs().float().masked_fill(~keep, torch.inf).flatten()
    both = keep.flatten().clone()
    both[sizes.topk(count, largest=False).indices] = False
    after = both.clone()
    after[worth.float().flatten().masked_fill(both, -torch.inf).topk(count).indices] = True
    return after.view_as(keep), both.view_as(keep)


def decayed(share: float, progress: float) -> float:
    """The share that is exchanged after a part of the time, falling along a cosine. Source: Evci et al. 2020, section 3.

    >>> [round(decayed(0.3, part), 3) for part in (0.0, 0.5, 1.0)]
    [0.3, 0.15, 0.0]
    """
    return share * 0.5 * (1 + math.cos(math.pi * progress))


def erdos_renyi(shapes: Sequence[Sequence[int]], sparsity: float) -> list[float]:
    """The part of each weight that stays when it is proportional to the sum of its sizes over their product, at most all of it.

    Source: Evci et al. 2020, "Rigging the lottery", section 3 (Erdős–Rényi-Kernel, after Mocanu et al. 2018).
    >>> [round(part, 3) for part in erdos_renyi([(100, 100), (100, 10)], sparsity=0.8)]
    [0.142, 0.781]
    """
    sizes = [math.prod(shape) for shape in shapes]
    odds = [sum(shape) / size if size else 0.0 for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        left = (1 - sparsity) * sum(sizes) - sum(sizes[place] for place in dense)
        others = sum(odds[place] * size for place, size in enumerate(sizes) if place not in dense)
        factor = max(0.0, left) / others if others else 0.0
        over = {place for place, odd in enumerate(odds) if place not in dense and odd * factor > 1}
        if not over:
            return [1.0 if place in dense else odd * factor for place, odd in enumerate(odds)]
        dense |= over
