"""Sharing bits, zeros and ranks out: against an exact solver, in steps that do what was foreseen, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from enxuto.allocation import _written, allocate
from enxuto.artifact.save import save
from enxuto.errors import RangeError, TargetError, TaskError
from enxuto.evidence.outputs import Answers
from enxuto.functional.allocate import cheapest_steps
from enxuto.losses import LayerLosses, Loss, Sensitivity
from enxuto.recipe import from_data, run, to_data
from enxuto.select import matches
from enxuto.sensitivities import sensitivity
from enxuto.steps.quantize import Quantize
from enxuto.task import Task
from toys import Block, ResidualCnn, task_of

law = settings(deadline=None, max_examples=30, derandomize=True)
REST = 100


def made(offers: list[list[tuple[int, float]]], **more: object) -> Sensitivity:
    """A sensitivity of layers "a", "b", ... with these bytes and errors; the bits are counted down from 8."""
    layers = [
        LayerLosses(
            path=chr(ord("a") + at),
            kind="Linear",
            weights=100,
            bytes=400,
            losses=tuple(Loss(bits=8 - place, bytes=cost, error=lost) for place, (cost, lost) in enumerate(layer)),
        )
        for at, layer in enumerate(offers)
    ]
    plain = Sensitivity(name="Net", key="k", samples=64, apart=True, rest_bytes=REST, layers=tuple(layers))
    return dataclasses.replace(plain, **more)


def exact(offers: list[list[tuple[int, float]]], limit: float, least: int = 1) -> float:
    """The least total loss within a cost (`least` = 1), or the least cost within a loss (0), by branch and bound."""
    flat = [(at, offer) for at, layer in enumerate(offers) for offer in layer]
    one_each = np.array([[float(at == layer) for at, _ in flat] for layer in range(len(offers))])
    limited = np.array([[float(offer[1 - least]) for _, offer in flat]])
    found = milp(
        np.array([float(offer[least]) for _, offer in flat]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(limited, -np.inf, limit + 1e-9)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
    )
    assert found.success
    return float(found.fun)


OFFERS = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50).map(float)), min_size=1, max_size=5), min_size=1, max_size=5
)


@law
@given(OFFERS, st.floats(0, 1))
def test_within_a_size_it_is_as_good_as_the_exact_answer_to_the_next_smaller_limit_on_the_hull(offers, part):
    costs = [cost for _, cost, _ in cheapest_steps(offers)]
    limit = costs[-1] + round(part * (costs[0] - costs[-1] + 20))
    found = allocate(made(offers), size=limit + REST)
    assert found.bytes <= limit + REST
    assert found.bytes == REST + sum(loss.bytes for loss in found.choices.values())
    next_smaller = max(cost for cost in costs if cost <= limit)
    assert exact(offers, limit) - 1e-9 <= found.loss <= exact(offers, next_smaller) + 1e-9


@law
@given(OFFERS, st.floats(0, 1))
def test_within_a_loss_too(offers, part):
    steps = [*cheapest_steps(offers)]
    limit = steps[0][2] + part * (steps[-1][2] - steps[0][2] + 20) + 0.5
    found = allocate(made(offers), loss=limit)
    assert found.loss <= limit
    next_smaller = max(lost for _, _, lost in steps if lost <= limit)
    assert exact(offers, limit, least=0) - 1e-9 <= found.bytes - REST <= exact(offers, next_smaller, least=0) + 1e-9


def test_steps_are_grouped_where_equal_and_select_what_was_chosen():
    offers = [[(80, 0.0), (40, 0.1)], [(80, 0.0), (40, 9.0)], [(80, 0.0), (40, 0.2)]]
    found = allocate(made(offers), size=REST + 160)
    assert [*found] == [Quantize(bits=8, layers="b"), Quantize(bits=7, layers=("a", "c"))]
    assert (found.bytes, found.loss) == (REST + 160, pytest.approx(0.3))
    assert from_data(to_data(found)) == tuple(found)
    assert {path: loss.bits for path, loss in found.choices.items()} == {"a": 7, "b": 8, "c": 7}


@pytest.mark.parametrize("kind", [ResidualCnn, Block])
def test_what_is_foreseen_is_what_comes(kind, tmp_path):
    task = task_of(kind)
    found = sensitivity(task, bits=(8, 4, 2), sparsity=(0.5,), sizes=(0.5,))
    sizes = [found.rest_bytes + sum(layer.losses[at].bytes for layer in found.layers) for at in (0, 1)]
    for size in (round(0.9 * sizes[0]), sizes[1], round(0.8 * sizes[1])):
        steps = allocate(found, size=size)
        model, _ = run(task, steps)
        save(model, tmp_path / "small.nxt", original=task.model)
        written = (tmp_path / "small.nxt").stat().st_size
        assert steps.bytes <= size
        assert written == pytest.approx(steps.bytes, rel=0.05, abs=60)
        assert Answers(task.model, task.calibration).moved(model) ** 2 == pytest.approx(steps.loss, rel=3)
        for layer in found.layers:
            bits = [step.bits for step in steps if isinstance(step, Quantize) and matches(layer.path, step.layers)]
            assert bits == [steps.choices[layer.path].bits]
    uniform = sum(layer.losses[1].error for layer in found.layers)
    assert allocate(found, size=sizes[1]).loss <= uniform
    assert allocate(found, loss=uniform).bytes <= sizes[1]


def test_with_the_task_the_file_itself_is_never_larger():
    task = task_of(ResidualCnn)
    found = sensitivity(task, bits=(8, 4), sparsity=(), sizes=())
    size = found.rest_bytes + sum(layer.losses[1].bytes for layer in found.layers) + 40
    foreseen, steps = allocate(found, size=size), allocate(found, size=size, task=task)
    assert foreseen.bytes <= size < _written(task, foreseen), "a limit that what is foreseen does not keep"
    assert steps.bytes == _written(task, steps) <= size
    loose = allocate(found, loss=0.1, task=task)
    assert loose.bytes == _written(task, loose)
    hopeful = dataclasses.replace(found, rest_bytes=found.rest_bytes - 20)
    with pytest.raises(TargetError, match=r"is less than the smallest file that was made, .*use size="):
        allocate(hopeful, size=size - 50, task=task)
    with pytest.raises(TaskError, match="not a Task"):
        allocate(found, size=size, task=task.model)


def test_thin_layers_each_have_a_step_and_zeros_come_before_bits():
    losses = [Loss(bits=4, sparsity=0.5, bytes=10, error=0.1), Loss(bits=4, size=0.25, bytes=5, error=0.2)]
    found = made([[(80, 0.0)]] * 3)
    a, b, c = found.layers
    layers = (dataclasses.replace(a, losses=(losses[0],)), *(dataclasses.replace(x, losses=(losses[1],)) for x in (b, c)))
    steps = allocate(dataclasses.replace(found, layers=layers), size=REST + 20)
    assert [(type(step).__name__, step.layers) for step in steps] == [
        ("Factorize", "b"),
        ("Factorize", "c"),
        ("Prune", "a"),
        ("Quantize", ("a", "b", "c")),
    ]
    assert steps[2].scope == "layer"


def test_the_same_way_to_round_is_in_the_steps():
    task = task_of(ResidualCnn)
    found = sensitivity(task, layers="fc", bits=[Quantize(bits=3, rounding="gptq", per="tensor")], sparsity=(), sizes=())
    assert [*allocate(found, size="1 MB")] == [Quantize(bits=3, layers="fc", rounding="gptq", per="tensor")]


def test_a_layer_that_no_sample_reached_keeps_the_most_bits():
    found = made([[(80, 0.0), (40, 0.0)], [(80, 0.0), (40, 0.0)]])
    a, b = found.layers
    found = dataclasses.replace(found, layers=(a, dataclasses.replace(b, why="no calibration batch reaches it")))
    assert {path: loss.bits for path, loss in allocate(found, loss=1.0).choices.items()} == {"a": 7, "b": 8}


def test_what_was_not_measured_is_not_chosen_and_without_bits_a_layer_may_stay():
    found = made([[(80, 0.0)]])
    (a,) = found.layers
    losses = (Loss(size=0.5, why="it cannot"), Loss(sparsity=0.5, bytes=300, error=0.2))
    found = dataclasses.replace(found, layers=(dataclasses.replace(a, losses=losses),))
    assert [*allocate(found, size=REST + 400)] == []
    assert allocate(found, size=REST + 399).choices["a"].sparsity == 0.5


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, TargetError, "give either"),
        ({"size": 100, "loss": 0.1}, TargetError, "give either"),
        ({"size": REST + 79}, TargetError, r"'b' alone 60 B, and the rest of the file 100 B; use size='181 B'"),
        ({"size": "soon"}, RangeError, "size='soon'"),
        ({"loss": 0.0}, RangeError, r"loss=0\.0"),
        ({"loss": float("nan")}, RangeError, "loss=nan"),
        ({"loss": "1%"}, RangeError, "loss='1%'"),
        ({"loss": 0.001}, TargetError, r"layers lose 0\.2 together"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, error, words):
    with pytest.raises(error, match=words):
        allocate(made([[(80, 0.1), (20, 0.2)], [(60, 0.1)]]), **asked)


def test_only_a_sensitivity_is_shared_out():
    with pytest.raises(TaskError, match=r"give what enxuto\.sensitivity returned"):
        allocate(Task(torch.nn.Linear(2, 2), calibration=[torch.zeros(1, 2)]), size="1 kB")
