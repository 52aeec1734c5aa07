"""Learning from a teacher: losses between the outputs of two networks. Differences of rounding teach nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from enxuto.functional.likeness import ROUNDING, Spread


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of the student's softened class probabilities from the teacher's, times temperature squared.

    Shapes: student, teacher [..., classes] (logits) -> scalar, the mean over the rows.
    Source: Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network", section 2.1.
    """
    same = (student - teacher).abs() <= ROUNDING * temperature  # of the softened scores: nothing that classes could tell
    given = F.log_softmax(torch.where(same, teacher, student).flatten(0, -2) / temperature, dim=-1)
    wanted = F.log_softmax(teacher.flatten(0, -2) / temperature, dim=-1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def same_values(student: Tensor, teacher: Tensor, spread: Spread) -> Tensor:
    """The mean squared difference in units of the variance of the teacher's outputs, channel by channel.

    Shapes: student, teacher [...] -> scalar: 0 for the same outputs, about 1 for the mean of all.
    """
    errors = spread.errors(teacher, student)
    return torch.where((errors > ROUNDING**2) & errors.isfinite(), errors, 0).mean()
