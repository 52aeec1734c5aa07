"""What a quality is worth: half of what the original knows must be left, and validation data must be new to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from enxuto.evaluation.doubts import blank_quality, seen_before
from enxuto.evaluation.points import points, said
from figures import evaluation
from toys import Mlp


@pytest.mark.parametrize(
    ("original", "compressed", "blank", "ruined"),
    [
        (0.72, 0.001, 0.001, True),  # a thousand classes, at chance
        (0.72, 0.37, 0.001, False),
        (0.95, 0.70, 0.5, True),  # two classes: what is over chance counts
        (0.95, 0.73, 0.5, False),
        (1.0, 0.4, 0.0, True),
        (-0.2, -1.5, -2.3, True),  # minus a loss
        (-0.2, -1.0, -2.3, False),
        (0.1, 0.0, 0.1, False),  # an original that knows nothing itself cannot be ruined
        (0.9, 0.0, None, False),
    ],
)
def test_less_than_half_of_what_the_original_knows_is_another_network(
    original: float, compressed: float, blank: float | None, ruined: bool
) -> None:
    found = evaluation(original, compressed, blank)
    assert found.ruined is ruined
    assert bool(found.ruin) is ruined


def test_the_ruin_is_told_with_its_numbers() -> None:
    words = evaluation(0.72, 0.0123, 0.001).ruin
    assert words.startswith("this is no longer the same network: quality (test) 1.23%, where the original has 72.00%")
    assert words.endswith("0.10%")


def test_a_network_of_zeros_knows_nothing() -> None:
    x = torch.randn(400, 12)
    model = Mlp()
    y = model(x).argmax(1)
    found = blank_quality(lambda m: (m(x).argmax(1) == y).float(), model)
    assert found == pytest.approx(float((y == 0).double().mean()))
    assert float(model(x).detach().abs().max()) > 0  # the original is left alone


def test_a_quality_that_zeros_do_not_have_is_not_known() -> None:
    x = torch.randn(40, 12)

    def correlation(model: nn.Module) -> Tensor:
        return torch.corrcoef(torch.stack([model(x)[:, 0], x[:, 0]]))[0, 1]

    assert blank_quality(correlation, Mlp()) is None


def test_an_original_that_saw_its_validation_images_is_pointed_out() -> None:
    def right(samples: int, share: float) -> Tensor:
        return (torch.arange(samples) < round(samples * share)).double()

    (note,) = seen_before(right(10_000, 0.977), right(10_000, 0.90))
    assert "97.70% on validation data and 90.00% on the test" in note
    assert seen_before(right(10_000, 0.907), right(10_000, 0.895)) == []
    assert seen_before(right(40, 0.95), right(40, 0.90)) == []  # chance
    assert seen_before(right(10_000, 0.90), right(10_000, 0.977)) == []
    assert seen_before(torch.tensor(31.0), torch.tensor(30.9)) == []


@pytest.mark.parametrize(
    ("change", "fraction", "words"),
    [
        (-0.0043, True, "lost 0.43 points"),
        (0.04, True, "gained 4 points"),
        (-0.01, True, "lost 1 point"),
        (-1e-12, True, "lost nothing"),
        (-0.00500049, True, "lost 0.5 points"),
        (-1.25, False, "lost 1.25"),
    ],
)
def test_a_change_of_quality_is_said_one_way(change: float, fraction: bool, words: str) -> None:
    assert said(change, fraction) == words
    assert points(abs(change), fraction) in words or math.isclose(change, 0, abs_tol=1e-9)
