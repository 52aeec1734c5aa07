"""How few bits the codes could take: entropies."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_bits(codes: Tensor) -> float:
    """The order-0 entropy of all codes together: the least bits a coder without context can use.

    Shapes: codes [any], integers.
    Source: Shannon 1948, "A mathematical theory of communication".
    """
    counts = torch.unique(codes, return_counts=True)[1].double()
    return float((counts * (counts.sum() / counts).log2()).sum())
