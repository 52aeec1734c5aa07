"""What weights meet in a changed network beside the original, against both written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from enxuto.evidence.crossed import MANY, UNPAIRED, CrossedOf, crossed
from enxuto.evidence.moments import UNSEEN, moments
from enxuto.sites import sites
from enxuto.surgery import duplicate
from test_rounding import SHAPES, data
from toys import Block, Mlp, seeded

BATCHES = [torch.randn(40, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def changed(model: nn.Module) -> nn.Module:
    made = duplicate(model)
    for weight in sites(made):
        weight.write_(weight.read() * 0.5)
    return made


def test_moments_are_those_of_the_copy_and_of_the_copy_with_the_original() -> None:
    model = Mlp().eval()
    copy = changed(model)
    found, missing = crossed(model, copy, BATCHES, ["fc2.weight"])
    [(own, across)] = found["fc2.weight"]
    before, after = (torch.relu(each.fc1(torch.cat(BATCHES))).detach() for each in (model, copy))
    torch.testing.assert_close(own.square, (after.T @ after / 120)[None])
    torch.testing.assert_close(across.square, (before.T @ after / 120)[None])
    assert (own.start, own.stop, own.count, missing) == (0, 24, 120, {})


@pytest.mark.parametrize("kind", [*SHAPES])
def test_a_copy_that_is_the_same_has_the_moments_of_the_original_twice(kind: type[nn.Module]) -> None:
    model = seeded(kind)
    keys = [weight.key for weight in sites(model)]
    whole, _ = moments(model, [data(kind, 1)], keys, 2)
    found, missing = crossed(model, duplicate(model), [data(kind, 1)], keys, 2)
    assert (found.keys(), missing) == (whole.keys(), {})
    for key, pairs in found.items():
        for (own, across), each in zip(pairs, whole[key], strict=True):
            torch.testing.assert_close(own.square, each.square)
            torch.testing.assert_close(across.square, each.square)


def test_the_copy_is_seen_as_it_is_when_a_weight_is_asked_for() -> None:
    model = Mlp().eval()
    copy = duplicate(model)
    asked = CrossedOf(model, copy, BATCHES, sites(copy))
    first = sites(copy)[0]
    assert asked(first.key)
    first.write_(first.read() * 0)
    [(own, _)] = asked("fc2.weight")
    expected = torch.relu(copy.fc1.bias.detach())
    torch.testing.assert_close(own.square[0], torch.outer(expected, expected))
    assert asked("fc2.weight") == []


def test_of_many_weights_neighbours_are_watched_together() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(2 * MANY + 1))).eval()
    runs: list[int] = []

    class Batches:
        def __iter__(self):
            runs.append(1)
            return iter([torch.randn(4, 3)])

    asked = CrossedOf(model, model, Batches(), sites(model))
    assert all(asked(weight.key) for weight in sites(model))
    assert len(runs) == 22


def test_what_is_not_seen_or_seen_in_another_order_is_said() -> None:
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            way = (self.first, self.second) if bool(self.first.weight.any()) else (self.second, self.first)
            return way[1](way[0](x))

    model = Turning().eval()
    copy = duplicate(model)
    sites(copy)[0].write_(torch.zeros(4, 4))
    found, missing = crossed(model, copy, [torch.randn(3, 4)], [weight.key for weight in sites(model)])
    assert not found
    assert missing == {"first.weight": UNPAIRED, "second.weight": UNPAIRED, "idle.weight": UNSEEN}


def test_attention_keeps_its_parts_apart() -> None:
    model = seeded(Block)
    found, _ = crossed(model, changed(model), [torch.randn(4, 7, 6)], ["attention.in_proj_weight"])
    assert [(own.start, own.stop) for own, _ in found["attention.in_proj_weight"]][-1][1] == 48
