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


def same_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of scores as they are, before any softmax.

    Shapes: student, teacher [..., classes] (logits) -> scalar.
    Source: Ba, Caruana 2014, "Do deep nets really need to be deep?", eq. 2; Kim, Oh, Kim, Cho, Yun 2021, "Comparing
    Kullback-Leibler divergence and mean squared error loss in knowledge distillation", eq. 9. Deviation: the mean over classes.
    """
    return (student - teacher).square().mean()


def decoupled(student: Tensor, teacher: Tensor, targets: Tensor, *, alpha: float, beta: float, temperature: float) -> Tensor:
    """Soft labels in two parts: how sure of the target class (`alpha`), and how the others compare (`beta`); times temperature
    squared. Soft labels themselves weigh the second by what the teacher leaves to it, which is little where it is sure.

    Shapes: student, teacher [..., classes] (logits), targets [...] (classes) -> scalar, the mean over the rows.
    Source: Zhao, Cui, Song, Qiu, Liang 2022, "Decoupled knowledge distillation", eq. 6 and 7.
    """
    own = F.one_hot(targets.flatten(), student.shape[-1]).bool()
    given, wanted = ((scores / temperature).flatten(0, -2) for scores in (student, teacher))
    target = _divergence(_of_target(given, own), _of_target(wanted, own))
    others = _divergence(_of_others(given, own), _of_others(wanted, own))
    return (alpha * target + beta * others) * temperature**2


def _of_target(scores: Tensor, own: Tensor) -> Tensor:
    """Log probabilities of the target class and of all others together. Shapes: [rows, classes] -> [rows, 2]."""
    whole = scores.logsumexp(-1)
    one, others = (scores.masked_fill(~keep, -torch.inf).logsumexp(-1) - whole for keep in (own, ~own))
    return torch.stack([one, others], -1)


def _of_others(scores: Tensor, own: Tensor) -> Tensor:
    """Log probabilities among the others; 0, the same for all, at the target. Shapes: [rows, classes] -> [rows, classes]."""
    return F.log_softmax(scores.masked_fill(own, -torch.inf), -1).masked_fill(own, 0.0)


def _divergence(given: Tensor, wanted: Tensor) -> Tensor:
    """Of log probabilities. Shapes: [rows, classes] -> scalar, the mean over the rows."""
    return (wanted.exp() * (wanted - given)).sum(-1).mean()
