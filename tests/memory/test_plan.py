"""A plan keeps its limit when it is really run, asks for no more than it must, and says what is missing."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import enxuto as ex
from enxuto import zoo
from enxuto.errors import LimitError, RangeError
from enxuto.memory.blocks import Choice
from enxuto.memory.planning import cheapest, lean_optimizers
from enxuto.memory.trials import equal, largest_batch

BATCH = torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))
LIMITS = {"resnet-8": ("8 MB", "3 MB"), "transformer": ("14 MB", "4 MB"), "lenet-300-100": ("6.2 MB",)}


@functools.cache
def planned(name, limit):
    return ex.memory.plan(zoo.build(name), BATCH, limit, loss=F.cross_entropy)


@pytest.mark.parametrize(("name", "limit"), [(name, limit) for name, limits in LIMITS.items() for limit in limits])
def test_every_option_keeps_the_limit_when_it_is_run(name, limit):
    model = zoo.build(name)
    plan = planned(name, limit)
    optimizers = {"Adam": torch.optim.Adam, **lean_optimizers()}
    assert plan.best.optimizer == "Adam"
    for option in plan.options:
        assert option.peak_bytes <= plan.limit_bytes
        assert option.batch_size * option.accumulation >= 32
        with ex.memory.checkpointed(model, option.checkpoint):
            measured = ex.memory.record(
                model,
                BATCH,
                loss=F.cross_entropy,
                optimizer=optimizers[option.optimizer],
                batch_size=option.batch_size,
                precision=option.precision,
                accumulation=option.accumulation,
            )
        assert measured.peak_bytes <= 1.05 * plan.limit_bytes


def test_the_largest_batch_is_the_largest():
    model = zoo.build("resnet-8")
    plan = planned("resnet-8", "8 MB")
    peaks = [
        ex.memory.predict(model, BATCH, loss=F.cross_entropy, optimizer=torch.optim.Adam, batch_size=size).peak_bytes
        for size in (plan.largest_batch, plan.largest_batch + 1)
    ]
    assert peaks[0] <= 8e6 < peaks[1]


@given(
    slopes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10_000)), min_size=1, max_size=4),
    limit=st.integers(0, 100_000),
    guess=st.integers(1, 5000),
    most=st.integers(1, 3000),
)
@settings(max_examples=300, deadline=None)
def test_the_search_finds_what_counting_finds(slopes, limit, guess, most):
    def peak(size: int) -> int:
        return max(slope * size + start for slope, start in slopes)

    asked = []
    found = largest_batch(lambda size: asked.append(size) or peak(size), limit, guess=guess, most=most)
    assert found == max((size for size in range(1, most + 1) if peak(size) <= limit), default=0)
    assert all(1 <= size <= most for size in asked)


@given(samples=st.integers(1, 5000), size=st.integers(1, 5000))
def test_equal_passes_are_as_many_and_no_larger(samples, size):
    found = equal(samples, size)
    assert -(-samples // found) == -(-samples // size)
    assert found == min(smaller for smaller in range(1, min(size, samples) + 1) if -(-samples // smaller) == -(-samples // size))


@given(
    costs=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=6),
    wanted=st.integers(1, 150),
)
@settings(max_examples=200, deadline=None)
def test_the_choice_of_checkpoints_fits_and_holds_none_to_spare(costs, wanted):
    choices = [Choice(str(number), saved, time) for number, (saved, time) in enumerate(costs)]
    size = {choice.path: choice.saved_bytes for choice in choices}

    def fits(paths: tuple[str, ...]) -> bool:
        return sum(size[path] for path in paths) >= wanted

    chosen = cheapest(choices, fits)
    if chosen is None:
        assert sum(size.values()) < wanted
        return
    paths = tuple(choice.path for choice in chosen)
    assert fits(paths)
    assert not any(fits(rest) for rest in itertools.combinations(paths, len(paths) - 1))


def test_a_limit_below_the_weights_says_what_is_needed():
    with pytest.raises(LimitError, match=r"weights of the model alone take 1\.07 MB"):
        ex.memory.plan(zoo.build("lenet-300-100"), BATCH, "1 MB", loss=F.cross_entropy)


def test_a_batch_of_one_that_does_not_fit_says_what_is_needed():
    with pytest.raises(LimitError, match=r"one sample with Adam takes .* SGD and Adafactor do not fit either"):
        ex.memory.plan(zoo.build("resnet-8"), BATCH, "0.8 MB", loss=F.cross_entropy)


def test_a_batch_norm_over_single_numbers_gets_two_samples_at_least():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 20), torch.nn.BatchNorm1d(20), torch.nn.Linear(20, 10))
    batch = torch.randn(33, 1, 28, 28), torch.randint(0, 10, (33,))
    peaks = [
        ex.memory.predict(
            model, batch, loss=F.cross_entropy, optimizer=torch.optim.Adam, batch_size=size, accumulation=2
        ).peak_bytes
        for size in (2, 3)
    ]
    plan = ex.memory.plan(model, batch, peaks[1], loss=F.cross_entropy)
    assert (plan.best.batch_size, plan.best.accumulation) == (3, 11)
    with pytest.raises(LimitError, match="2 samples, the fewest that its batch norms take"):
        ex.memory.plan(model, batch, 130_000, loss=F.cross_entropy)


def test_numbers_that_make_no_sense_are_refused():
    model = zoo.build("lenet-5")
    with pytest.raises(RangeError, match="limit='much'"):
        ex.memory.plan(model, BATCH, "much", loss=F.cross_entropy)
    with pytest.raises(RangeError, match="samples_per_update=0"):
        ex.memory.plan(model, BATCH, "1 GB", loss=F.cross_entropy, samples_per_update=0)
    option = ex.memory.plan(model, BATCH, "1 GB", loss=F.cross_entropy).best
    with pytest.raises(RangeError, match="trainer='keras'"):
        option.settings("keras")


def test_settings_are_what_trainers_take():
    option = planned("transformer", "4 MB").best
    assert option.settings("lightning")["accumulate_grad_batches"] == option.accumulation > 1
    given = option.settings("transformers")
    assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] >= 32
    assert ex.Recover(**option.settings("recover")).memory == option.limit_bytes == 4_000_000


def test_a_network_that_refuses_one_sample_is_planned_from_two_on():
    def block(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 320), nn.BatchNorm1d(320), nn.ReLU())

    model = nn.Sequential(block(64), block(320), nn.Linear(320, 10))
    batch = torch.randn(256, 64), torch.randint(0, 10, (256,))
    plan = ex.memory.plan(model, batch, "3 MB", loss=F.cross_entropy)
    assert plan.largest_batch > 2
    assert all(option.peak_bytes <= plan.limit_bytes for option in plan.options)
    with pytest.raises(LimitError, match="step of 2 samples, the fewest that its batch norms take, with Adam takes"):
        ex.memory.plan(model, batch, "0.7 MB", loss=F.cross_entropy)


def test_what_must_really_run_is_not_run_larger_than_asked_for_and_says_so_once(caplog):
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            sizes.append(len(x))
            y = self.fc(x)
            return y if float(y.sum()) > 0 else -y

    sizes: list[int] = []
    plan = ex.memory.plan(Moody(), (torch.randn(16, 64), torch.randint(0, 10, (16,))), "50 MB", loss=F.cross_entropy)
    assert plan.largest_batch == max(sizes) == 16
    assert len(sizes) > 4
    assert len([record for record in caplog.records if "measured in a real run" in record.message]) == 1
