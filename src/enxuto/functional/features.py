"""Learning from inside a teacher: losses between what layers of two networks return."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-12  # below which a norm is none
SAME = 1e-6  # of the mean square of a batch: samples that are nearer are one, as differences of float32 say no more


def same_features(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference in units of the variance of the teacher's features.

    Shapes: student, teacher [...] -> scalar: 0 for the same, about 1 for their mean.
    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets: hints for thin deep nets", eq. 3.
    Deviation: in units of the variance, so that a weight means the same at every layer.
    """
    return (student - teacher).square().mean() / teacher.var(correction=0).clamp_min(LEAST)


def same_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """How far apart the maps are that say where channels are large; the number of channels may differ.

    Shapes: student [batch, channels, ...], teacher [batch, other channels, ...] -> scalar, the mean over the batch, 0...2.
    Source: Zagoruyko, Komodakis 2017, "Paying more attention to attention", eq. 2 with p = 2. Deviation: the norm is squared.
    """
    ours, theirs = (F.normalize(each.square().mean(1).flatten(1), dim=1) for each in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def same_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently the samples of a batch lie apart: Huber's loss between distances, each in units of their mean.

    Shapes: student [batch, ...], teacher [batch, ...] (sizes may differ) -> scalar; 0 for a batch of one.
    Source: Park, Kim, Lu, Cho 2019, "Relational knowledge distillation", eq. 5 to 7.
    """
    ours, theirs = (_distances(_products(each)) for each in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def same_angles(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently each sample sees any two others: Huber's loss between the cosines of angles.

    Shapes: student [batch, ...], teacher [batch, ...] (sizes may differ) -> scalar; 0 for a batch of one.
    Source: Park, Kim, Lu, Cho 2019, "Relational knowledge distillation", eq. 8 to 10.
    """
    ours, theirs = (_cosines(_products(each)) for each in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def told_apart(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The cross entropy of finding, for each sample, the teacher's features of it among those of the whole batch.

    Shapes: student, teacher [batch, features] -> scalar; maps [batch, features, height, width] count by their means.
    Source: Tian, Krishnan, Isola 2020, "Contrastive representation distillation", eq. 10. Deviation: the other samples of the
    batch in place of a memory of negatives, and so van den Oord, Li, Vinyals 2018 (InfoNCE), eq. 4, from student to teacher.
    """
    ours, theirs = (F.normalize(_pooled(each), dim=1) for each in (student, teacher))
    return F.cross_entropy(ours @ theirs.T / temperature, torch.arange(len(ours), device=ours.device))


def same_tokens(student: Tensor, teacher: Tensor, counts: Tensor | None = None) -> Tensor:
    """`same_features` of the tokens that count: padding does not.

    Shapes: student, teacher [batch, tokens, width], counts [batch, tokens] (0 or False is padding) -> scalar.
    Source: Jiao et al. 2020, "TinyBERT: distilling BERT for natural language understanding", eq. 8. Deviation: as there.
    """
    if counts is not None:
        student, teacher = student[counts.bool()], teacher[counts.bool()]
    return same_features(student, teacher)


def same_token_relations(student: Tensor, teacher: Tensor, counts: Tensor | None = None) -> Tensor:
    """The divergence of how each token attends to the others by its hidden state; the widths may differ.

    Shapes: student [batch, tokens, width], teacher [batch, tokens, other width], counts [batch, tokens] (0 or False is padding)
    -> scalar, the mean over the tokens that count.
    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM: deep self-attention distillation", eq. 8. Deviation: of hidden states
    in place of the values of attention, so that any layer has it.
    """
    seen = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device) if counts is None else counts.bool()
    hidden = ~seen[:, None, :]
    ours, theirs = (F.log_softmax(_scaled(each).masked_fill(hidden, -torch.inf), -1) for each in (student, teacher))
    ours, theirs = (each.masked_fill(hidden, 0.0) for each in (ours, theirs))
    rows = (theirs.exp() * (theirs - ours)).sum(-1)
    return rows[seen].mean()


def _scaled(values: Tensor) -> Tensor:
    """Shapes: [batch, tokens, width] -> [batch, tokens, tokens]."""
    return values @ values.transpose(1, 2) / values.shape[-1] ** 0.5


def _pooled(features: Tensor) -> Tensor:
    """Shapes: [batch, channels, height, width] or [batch, ...] -> [batch, features]."""
    return features.flatten(2).mean(2) if features.ndim > 3 else features.flatten(1)


def _products(features: Tensor) -> Tensor:
    """The inner products of samples, from their mean, which no distance hangs on. Shapes: [batch, ...] -> [batch, batch]."""
    flat = features.flatten(1)
    flat = flat - flat.mean(0)
    return flat @ flat.T


def _norms(products: Tensor) -> Tensor:
    """Distances; 0 for a sample from itself or one like it. Shapes: [batch, batch] -> [batch, batch]."""
    own = products.diagonal()
    squares = own[:, None] + own - 2 * products
    apart = squares > SAME * own.mean()
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def _distances(products: Tensor) -> Tensor:
    """Distances in units of their mean over all pairs. Shapes: [batch, batch] -> [batch, batch]."""
    distances, size = _norms(products), len(products)
    return distances / (distances.sum() / max(1, size * (size - 1))).clamp_min(LEAST)


def _cosines(products: Tensor) -> Tensor:
    """That of the angle at j between i and k; 0 where two of them are one. Shapes: [batch, batch] -> [j, i, k]."""
    norms = _norms(products)
    shares = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)
    own = products - products.diagonal()[:, None] / 2  # [j, i]: the product of (i - j) and (k - j) is that of i and k less both
    return (products - own[:, :, None] - own[:, None, :]) * shares[:, :, None] * shares[:, None, :]
