"""Losses between features and scores against what the papers' sums say, one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from enxuto.functional.distill import decoupled, same_logits, soft_labels
from enxuto.functional.features import (
    same_angles,
    same_attention,
    same_distances,
    same_features,
    same_token_relations,
    same_tokens,
    told_apart,
)

G = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def near(found: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-4, atol=1e-6)


def test_soft_labels_are_their_two_parts_with_what_the_teacher_leaves() -> None:
    """Equation 5 of the paper: the second part of soft labels is weighed by one minus the teacher's target."""
    for _ in range(5):
        one, other, target = drawn(1, 6), drawn(1, 6), torch.tensor([2])
        rest = 1 - float(torch.softmax(other / 4, -1)[0, 2])
        near(decoupled(one, other, target, alpha=1.0, beta=rest, temperature=4.0), soft_labels(one, other, 4.0))


def test_both_parts_of_decoupled_soft_labels_are_the_sums_of_the_paper() -> None:
    one, other, targets = drawn(5, 2, 4), drawn(5, 2, 4), torch.randint(0, 4, (5, 2), generator=G)
    target = others = 0.0
    for ours, theirs, label in zip(one.flatten(0, 1), other.flatten(0, 1), targets.flatten().tolist(), strict=True):
        p, q = (torch.softmax(each / 3, -1).double() for each in (theirs, ours))
        for given, wanted in ((q[label], p[label]), (1 - q[label], 1 - p[label])):
            target += float(wanted * (wanted / given).log())
        p, q = (each[torch.arange(4) != label] for each in (p, q))
        p, q = p / p.sum(), q / q.sum()
        others += float((p * (p / q).log()).sum())
    near(decoupled(one, other, targets, alpha=1.0, beta=0.0, temperature=3.0), 9 * target / 10)
    near(decoupled(one, other, targets, alpha=0.0, beta=2.0, temperature=3.0), 18 * others / 10)


def test_logits_by_squares() -> None:
    near(same_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])), 2.5)


def test_features_are_one_from_their_mean_and_nothing_from_themselves() -> None:
    values = 3 + 5 * drawn(20, 4)
    near(same_features(values, values), 0.0)
    near(same_features(values.mean().expand(20, 4), values), 1.0)
    near(same_features(2 * values, 2 * values.flip(0)), same_features(values, values.flip(0)))


def test_attention_is_the_distance_of_unit_maps_whatever_the_channels() -> None:
    one, other = drawn(3, 4, 2, 5), drawn(3, 7, 2, 5)
    total = 0.0
    for ours, theirs in zip(one, other, strict=True):
        maps = [sum(channel.square() for channel in each).flatten() for each in (ours, theirs)]  # type: ignore[union-attr]
        maps = [each / each.norm() for each in maps]
        total += float((maps[0] - maps[1]).norm() ** 2)
    near(same_attention(one, other), total / 3)
    near(same_attention(3 * one[:, [2, 0, 1, 3]], one), 0.0)


def test_distances_and_angles_are_those_of_the_paper() -> None:
    one, other = drawn(5, 3), drawn(5, 2, 4)
    distances, angles = [], []
    for each in (one, other.flatten(1)):
        apart = torch.cdist(each, each)
        distances.append(apart / (apart.sum() / 20))
        cosines = torch.zeros(5, 5, 5)
        for j in range(5):
            for i in range(5):
                for k in range(5):
                    if j not in (i, k):
                        cosines[j, i, k] = F.cosine_similarity(each[i] - each[j], each[k] - each[j], dim=0)
        angles.append(cosines)
    near(same_distances(one, other), F.smooth_l1_loss(*distances))
    near(same_angles(one, other), F.smooth_l1_loss(*angles))


@pytest.mark.parametrize("loss", [same_distances, same_angles])
def test_a_batch_that_is_turned_moved_and_scaled_has_the_same_relations(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    values = drawn(6, 4)
    turned = torch.linalg.qr(drawn(4, 4)).Q
    near(loss(3 * values @ turned + 100, values), 0.0)
    assert float(loss(drawn(6, 4), values)) > 0.01


@pytest.mark.parametrize("loss", [same_distances, same_angles])
@pytest.mark.parametrize("values", [torch.ones(1, 3), torch.ones(4, 3), torch.tensor([[1.0, 2], [1, 2], [3, 4]])])
def test_samples_that_are_alone_or_the_same_have_gradients_that_are_numbers(
    loss: Callable[[Tensor, Tensor], Tensor], values: Tensor
) -> None:
    given = values.clone().requires_grad_()
    loss(given, drawn(*values.shape)).backward()
    assert given.grad is not None
    assert bool(given.grad.isfinite().all())
    assert float(given.grad.abs().max()) < 100


def test_samples_are_told_apart_by_the_cross_entropy_of_their_cosines() -> None:
    unit = torch.eye(4)
    near(told_apart(2 * unit, 5 * unit, 0.5), math.log(1 + 3 * math.exp(-2)))
    near(told_apart(unit, unit.roll(1, 0), 0.5), 2 + math.log(1 + 3 * math.exp(-2)))
    maps = drawn(4, 3, 2, 2)
    near(told_apart(maps, maps, 0.1), told_apart(maps.mean((2, 3)), maps.mean((2, 3)), 0.1))


def test_padding_counts_for_nothing() -> None:
    one, other, counts = drawn(2, 5, 4), drawn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    real = [(one[0, :3], other[0, :3]), (one[1], other[1])]
    expected = same_features(*(torch.cat(each) for each in zip(*real, strict=True)))
    near(same_tokens(one, other, counts), expected)
    rows = []
    for ours, theirs in real:
        p, q = (torch.softmax(each @ each.T / 2, -1) for each in (theirs, ours))
        rows += [float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)]
    near(same_token_relations(one, other, counts), sum(rows) / 8)
    spoilt = one.clone()
    spoilt[0, 3:] = 1e3
    for loss in (same_tokens, same_token_relations):
        near(loss(spoilt, other, counts), loss(one, other, counts))
        near(loss(one, other, torch.ones(2, 5)), loss(one, other))


def test_gradients_are_numbers_where_scores_are_extreme() -> None:
    ours = torch.tensor([[100.0, -100.0, 0.0]], requires_grad=True)
    decoupled(ours, -ours.detach(), torch.tensor([0]), alpha=1.0, beta=1.0, temperature=1.0).backward()
    states = (30 * drawn(1, 3, 4)).requires_grad_()
    same_token_relations(states, drawn(1, 3, 6), torch.tensor([[1, 0, 1]])).backward()
    for each in (ours, states):
        assert each.grad is not None
        assert bool(each.grad.isfinite().all())
