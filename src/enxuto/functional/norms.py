"""Lengths of groups of weights, which a training can make small."""

from __future__ import annotations

import torch
from torch import Tensor


def group_norms(matrix: Tensor, *, rows: bool) -> Tensor:
    """The length of each row, or of each column, times the root of how many weights it has; gradients of zeros are zero.

    Shapes: [out, in] -> [out] or [in]. Source: Yuan, Lin 2006, "Model selection and estimation in regression with grouped
    variables", eq. 2.1 with the norms of section 2.
    >>> group_norms(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), rows=True)
    tensor([10.,  0.])
    """
    along = 1 if rows else 0
    return torch.linalg.vector_norm(matrix, dim=along) * matrix.shape[along] ** 0.5
