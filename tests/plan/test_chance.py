"""The margin for chance keeps its promise in simulated searches, and the samples it asks for are enough."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from enxuto.plan.chance import MARGIN, samples_needed, standard_error

BENCH = Path(__file__).parents[2] / "bench" / "search_margin.py"


@pytest.fixture(scope="module")
def bench() -> object:
    import sys

    spec = importlib.util.spec_from_file_location("search_margin", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_margin"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_promise_is_kept_in_nine_of_ten_simulated_searches(bench: object) -> None:
    """1,000 samples, two points: where the rule is tightest of what the bench simulates. 400 searches, seeded."""
    told = bench.told(bench.Rule("ours", bench.errors(MARGIN)), 1_000, 0.02, 0.3, 400)  # type: ignore[attr-defined]
    plain = bench.told(bench.Rule("none", bench.errors(0.0)), 1_000, 0.02, 0.3, 100)  # type: ignore[attr-defined]
    assert told["broken"] <= 0.1
    assert told["nothing accepted"] <= 0.05
    assert plain["broken"] > 0.3  # the best of many flatters: without a margin the promise is worth little


def test_the_simulated_drops_are_the_true_ones(bench: object) -> None:
    world = bench.World(400_000, 0.3, 1)  # type: ignore[attr-defined]
    recipe = bench.Recipe(1.0, 0.01)  # type: ignore[attr-defined]
    after = world.answers(recipe)
    assert world.before.mean() - after.mean() == pytest.approx(0.01, abs=0.002)
    assert (world.before != after).mean() == pytest.approx(0.05, abs=0.01)


def test_the_samples_asked_for_would_have_been_enough() -> None:
    chance = np.random.default_rng(0)
    before, after = (torch.from_numpy(chance.random(4_000) < share).double() for share in (0.9, 0.895))
    error, drop = standard_error(before, after), float(before.mean() - after.mean())
    allowed = drop + 0.5 * MARGIN * error
    needed = samples_needed(4_000, drop, error, allowed)
    assert needed is not None
    assert needed == pytest.approx(16_000, abs=1)
    assert drop + MARGIN * error * math.sqrt(4_000 / needed) <= allowed
    assert samples_needed(4_000, 0.02, error, 0.01) is None
    assert samples_needed(0, 0.0, 0.0, 0.01) is None


def test_a_single_number_has_no_error() -> None:
    assert standard_error(torch.tensor(0.9), torch.tensor(0.8)) == 0
    assert standard_error(torch.ones(1), torch.zeros(1)) == 0
