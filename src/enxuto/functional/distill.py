"""Learning from a teacher: losses between the outputs of two networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of the student's softened class probabilities from the teacher's, times temperature squared.

    Shapes: student, teacher [batch, classes] (logits) -> scalar, the mean over the batch.
    Source: Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network", section 2.1.
    """
    given = F.log_softmax(student.flatten(0, -2) / temperature, dim=-1)
    wanted = F.log_softmax(teacher.flatten(0, -2) / temperature, dim=-1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def same_outputs(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference, relative to the variance of the teacher's outputs.

    Shapes: student, teacher [batch, ...] -> scalar.
    """
    return F.mse_loss(student, teacher) / teacher.var(unbiased=False).clamp_min(1e-12)
