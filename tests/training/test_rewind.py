"""Rewinding: zeros of late, values of early."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.errors import ShapeError, TaskError
from enxuto.sites import sites
from toys import Mlp, ResidualCnn, Tied, inputs, photograph, seeded, task_of, unchanged


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn])
def test_zeros_are_those_of_late_and_all_else_is_early(kind: type[nn.Module]) -> None:
    pruned, _ = ex.run(task_of(kind), [ex.Prune(0.7)])
    early, before = seeded(kind, seed=9), photograph(pruned)
    made = ex.rewind(pruned, early)
    assert unchanged(pruned, before)
    weights = {weight.key: weight.read() for weight in sites(pruned)}
    for name, value in early.state_dict().items():
        want = value.where(weights[name] != 0, 0.0) if name in weights else value
        assert torch.equal(made.state_dict()[name], want)
    again = ex.rewind(pruned, copy.deepcopy(early.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))


def test_tickets_are_drawn_in_rounds_and_train() -> None:
    """Train, prune, rewind; the sparsity adds up and nothing comes back."""
    x, y = inputs(Mlp), torch.arange(8) % 5
    net = seeded(Mlp)
    task = ex.Task(net, calibration=[x], train=[(x, y)] * 10, loss=F.cross_entropy)
    training = ex.Recover(teacher=0.0, learning_rate=1e-2)
    early = copy.deepcopy(net.state_dict())
    ticket, zeros = net, [torch.zeros_like(weight.read(), dtype=torch.bool) for weight in sites(net)]
    for sparsity in (0.5, 0.75):
        trained, _ = training(ticket, task)
        pruned, _ = ex.Prune(sparsity, scores="magnitude")(trained, task)
        ticket = ex.rewind(pruned, early)
        now = [weight.read() == 0 for weight in sites(ticket)]
        assert all(bool((b | ~a).all()) for a, b in zip(zeros, now, strict=True))
        zeros = now
    final, record = training(ticket, task)
    assert sum(int(z.sum()) for z in zeros) == round(0.75 * sum(z.numel() for z in zeros))
    assert all(not weight.read()[z].any() for weight, z in zip(sites(final), zeros, strict=True))
    assert record.figures["loss_last"] < record.figures["loss_first"]


def test_tied_weights_stay_tied() -> None:
    task = ex.Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    made = ex.rewind(ex.run(task, [ex.Prune(0.5)])[0], seeded(Tied, seed=4))
    assert made.embed.weight is made.head.weight


def coded(*steps: Any) -> nn.Module:
    return ex.run(task_of(Mlp), list(steps))[0]


@pytest.mark.parametrize(
    ("model", "early", "error", "words"),
    [
        (lambda: None, lambda: seeded(Mlp), TaskError, "model is NoneType"),
        (lambda: seeded(Mlp), lambda: 3, TaskError, "early is int, neither a network nor its state dict"),
        (lambda: coded(ex.Quantize(4)), lambda: seeded(Mlp), TaskError, r"'fc1' is coded.*; rewind before Quantize or Share"),
        (lambda: ex.prepare(task_of(Mlp), [ex.Prune()]), lambda: seeded(Mlp), TaskError, r"'fc1' is in training.*; call convert"),
        (lambda: seeded(Mlp), lambda: seeded(ResidualCnn), TaskError, r"holds '.*' and .* does not; give the state of the very"),
        (lambda: seeded(Mlp), dict, TaskError, r"the pruned network holds 'fc1.bias' and the early state does not"),
        (
            lambda: nn.Linear(3, 4),
            lambda: nn.Linear(3, 5),
            ShapeError,
            r"'weight' is \(4, 3\) in the pruned network and \(5, 3\) early on; rewind after steps",
        ),
    ],
)
def test_what_cannot_be_rewound_is_refused(model: Any, early: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ex.rewind(model(), early())
