"""A training that another loop runs: what a checkpoint holds of it, and what is done when it ends too early."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from enxuto.errors import RangeError
from enxuto.sites import sites
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.regrow import Regrow
from enxuto.task import Task
from enxuto.training.course import Course
from toys import Mlp, inputs, output, seeded

STEPS = {
    "late": [Prune(sparsity=0.5), Quantize(4)],
    "looking": [Regrow(sparsity=0.5, updates=5)],
    "moving": [Prune(sparsity=0.5, scores="movement")],
}
UPDATES = 20


def begun(name: str, done: int = 0, tight: float = 0.7) -> tuple[Course, torch.optim.Optimizer]:
    course = Course(Task(seeded(Mlp), calibration=[inputs(Mlp)]), STEPS[name], tight)
    course.begin(UPDATES, done)
    return course, torch.optim.Adam(course.model.parameters(), lr=1e-2)


def trained(course: Course, optimizer: torch.optim.Optimizer, updates: int) -> None:
    x = inputs(Mlp)
    for _ in range(updates):
        optimizer.zero_grad()
        nn.functional.cross_entropy(course.model(x), torch.arange(len(x)) % 5).backward()
        course.observe(optimizer)
        optimizer.step()
        course.step()


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("killed", [1, 9, 17])
def test_a_training_taken_up_again_ends_with_the_same_network(name: str, killed: int) -> None:
    whole, optimizer = begun(name)
    trained(whole, optimizer, UPDATES)
    first, optimizer = begun(name)
    trained(first, optimizer, killed)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    second, optimizer = begun(name, done=killed)
    second.model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    trained(second, optimizer, UPDATES - killed)
    x = inputs(Mlp)
    assert torch.equal(output(second.end(), x), output(whole.end(), x))


def test_a_schedule_goes_on_from_its_own_state() -> None:
    course, optimizer = begun("late")
    trained(course, optimizer, 9)
    assert course.schedule is not None
    other = begun("late")[0].schedule
    assert other is not None
    other.load_state_dict(course.schedule.state_dict())
    assert other.strength == course.schedule.strength > 0


def test_a_training_that_ends_early_still_ships_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    course, optimizer = begun("late")
    trained(course, optimizer, 5)
    shipped = course.end()
    assert "ended after 5 updates, where its schedule is whole after 14" in caplog.text
    weights = [weight.read() for weight in sites(shipped)]
    total = sum(weight.numel() for weight in weights)
    assert sum(int((weight == 0).sum()) for weight in weights) >= round(0.5 * total)
    assert all(len(row.unique()) <= 15 for weight in weights for row in weight)


def test_what_is_tight_from_the_first_batch_waits_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    course, _ = begun("late", tight=0)
    x = inputs(Mlp)
    assert torch.allclose(output(course.end(), x), output(course.model.eval(), x), atol=1e-5)
    assert "ended after" not in caplog.text


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(RangeError, match=r"tight=1.5"):
        begun("late", tight=1.5)
