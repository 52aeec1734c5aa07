"""Inputs made from batch norms: near to what these remember, of every class, and the network is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import LayerError, RangeError, ShapeError, TaskError
from enxuto.functional.invent import roughness, unlike_statistics


def drawn(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of two kinds that are nothing like noise: bright above or bright below, around 1."""
    made = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (samples,), generator=made)
    rows = (torch.arange(8) < 4).float()[None, :, None].expand(samples, 8, 8)
    bright = torch.where(labels[:, None, None] == 0, rows, 1 - rows)
    return (1 + 3 * bright + 0.3 * torch.randn(samples, 8, 8, generator=made))[:, None], labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 2)),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for number in range(60):
        x, y = drawn(64, number)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def off(net: nn.Module, inputs: Tensor) -> float:
    """How far the inputs of the norms are from what they remember, on average."""
    losses: list[Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(
            lambda norm, given: losses.append(unlike_statistics(given[0], norm.running_mean, norm.running_var))
        )  # type: ignore[arg-type]
        for norm in (net[1], net[4])  # type: ignore[index]
    ]
    net(inputs)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(losses).mean().detach())


def test_invented_inputs_are_what_the_norms_remember_and_of_every_class(trained: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    batches = ex.invent(trained, (1, 8, 8), 65, updates=150)
    assert [tuple(batch.shape) for batch in batches] == [(63, 1, 8, 8), (2, 1, 8, 8)]
    noise, made, real = torch.randn(63, 1, 8, 8, generator=torch.Generator().manual_seed(1)), batches[0], drawn(64, 99)[0]
    assert off(trained, made) < 0.2 * off(trained, noise)
    sure = torch.softmax(trained(made).detach(), 1)
    assert float(sure.amax(1).mean()) > 0.9
    assert sorted(sure.argmax(1).unique().tolist()) == [0, 1]
    assert abs(float(made.mean() - real.mean())) < 0.5 * abs(float(noise.mean() - real.mean()))
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    assert not trained[1]._forward_pre_hooks  # type: ignore[index]


def test_the_same_seed_invents_the_same(trained: nn.Module) -> None:
    one, other, third = (ex.invent(trained, (1, 8, 8), 8, seed=seed, updates=3)[0] for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_they_calibrate_a_training_without_data(trained: nn.Module) -> None:
    x, y = drawn(256, 1000)
    task = ex.Task(trained, calibration=ex.invent(trained, (1, 8, 8), 64, updates=100), outputs="classes")
    worn = copy.deepcopy(trained)
    nn.init.normal_(worn[7].weight.data, generator=torch.Generator().manual_seed(0))  # type: ignore[index]
    small, _ = ex.Recover(epochs=20, learning_rate=1e-2)(worn, task)
    right = [float((net(x).argmax(1) == y).float().mean()) for net in (worn, small)]
    assert right[0] < 0.7
    assert right[1] > 0.9


def test_vectors_and_networks_without_classes_are_invented_too() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).train()
    for number in range(50):
        net(3 + torch.randn(32, 5, generator=torch.Generator().manual_seed(number)))
    made = ex.invent(net.eval(), [5], 32)[0]
    seen = net[0](made).detach()
    assert float(unlike_statistics(seen, net[1].running_mean, net[1].running_var)) < 0.1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": nn.Sequential(nn.Linear(3, 2))}, LayerError, "Sequential has none .* give calibration=batches of real inputs"),
        ({"model": nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))}, LayerError, "has none"),
        ({"shape": (1, 8.0, 8)}, ShapeError, "no shape of one sample"),
        ({"shape": 8}, ShapeError, "shape=8 is no shape of one sample"),
        ({"shape": (3, 8, 8)}, TaskError, "the model fails on the inputs that are made"),
        ({"samples": 1}, RangeError, "samples=1 is no whole number of at least 2"),
        ({"updates": 0}, RangeError, "updates=0 is no whole number of at least 1"),
    ],
)
def test_what_cannot_be_invented_is_refused(arguments: dict[str, Any], error: type, words: str, trained: nn.Module) -> None:
    given = {"model": trained, "shape": (1, 8, 8), "samples": 8, "updates": 1} | arguments
    with pytest.raises(error, match=words):
        ex.invent(**given)


def test_statistics_that_are_the_same_cost_nothing_and_others_what_they_are_off() -> None:
    values = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = values.movedim(1, -1).flatten(0, 1)
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    assert float(unlike_statistics(values, mean, variance)) == pytest.approx(0, abs=1e-6)
    shifted = unlike_statistics(2 * (values - mean[:, None]) + mean[:, None] + 3 * variance.sqrt()[:, None], mean, variance)
    assert float(shifted) == pytest.approx(9 + 1, rel=1e-4)


@pytest.mark.parametrize(("made", "expected"), [(lambda x: x * 0 + 7, 0.0), (lambda x: x, 2.0 / 2 + 1.0)])
def test_roughness_is_the_square_of_steps(made: Callable[[Tensor], Tensor], expected: float) -> None:
    image = torch.arange(5.0)[:, None] + torch.arange(6.0)[None, :]
    assert float(roughness(made(image[None, None]))) == pytest.approx(expected)
