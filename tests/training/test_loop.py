"""The loop itself: what is called when, and what a training comes to whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import RangeError, TaskError
from enxuto.recipe import from_yaml, line, to_yaml
from enxuto.sites import sites
from enxuto.training.examples import Examples
from enxuto.training.loop import LONGEST, Loop
from enxuto.training.objective import Objective
from enxuto.training.optimizers import names
from enxuto.training.schedules import SCHEDULES


def labelled(batches: int = 6, scale: float = 1.0) -> ex.Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pairs = [(scale * torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(batches)]
    return ex.Task(model, calibration=[pairs[0][0]], train=pairs, loss=nn.functional.cross_entropy)


def test_gradients_are_seen_before_the_update_and_clipped() -> None:
    task = labelled(scale=300.0)
    student = task.model
    seen: list[tuple[float, Tensor]] = []
    done: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        length = torch.stack([each.grad.norm() for each in student.parameters() if each.grad is not None]).norm()
        seen.append((float(length), student[0].weight.detach().clone()))  # type: ignore[union-attr]

    def follow() -> None:
        done.append(student[0].weight.detach().clone())  # type: ignore[union-attr]

    Loop(learning_rate=1e-2).run(student, Objective(task, 0.0, 4.0), Examples(task, 1.0), [follow], before=[look])
    assert len(seen) == len(done) == 6
    assert max(length for length, _ in seen) <= LONGEST * 1.001
    assert all(torch.equal(then, now) for then, (_, now) in zip(done, seen[1:], strict=False)), "the update comes after the look"
    assert not torch.equal(done[0], seen[0][1])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def zeros(model: nn.Module) -> float:
    return float(torch.cat([(site.read() == 0).float().flatten() for site in sites(model)]).mean())


def recovered(task: ex.Task, **arguments: Any) -> tuple[nn.Module, ex.records.Record]:
    return ex.Recover(teacher=0.0, **arguments)(task.model, task)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 4), (2, 8)])
def test_batches_that_are_accumulated_are_one_large_batch(sizes: tuple[int, int]) -> None:
    plain = labelled()
    pairs = [(torch.randn(size, 6), torch.randint(0, 3, (size,))) for size in sizes * 4]
    pairs += [(torch.randn(5, 6), torch.randint(0, 3, (5,)))]  # the last update has one alone
    joined = [tuple(map(torch.cat, zip(*pairs[at : at + 2], strict=True))) for at in range(0, len(pairs), 2)]
    options = {"optimizer": "SGD", "options": {"momentum": 0.9}, "learning_rate": 0.1}
    one, record = recovered(replace(plain, train=pairs), accumulate=2, **options)
    other, _ = recovered(replace(plain, train=joined), **options)
    assert torch.allclose(weights(one), weights(other), atol=1e-6)
    assert not torch.allclose(weights(one), weights(plain.model), atol=1e-3)
    assert record.figures["batches"] == 9


def test_one_cycle_is_that_of_torch() -> None:
    for total in (4, 10, 97):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total)
        for done in range(total):
            assert SCHEDULES["one-cycle"](done, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
            optimizer.step()
            if done + 1 < total:
                theirs.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 1000])
def test_every_schedule_has_a_part_of_the_rate_for_every_update(schedule: str, total: int) -> None:
    parts = [SCHEDULES[schedule](done, total) for done in range(total)]
    assert all(0 < part <= 1 for part in parts)
    assert max(parts) > 0.99 or (schedule, total) == ("cosine", 2)


@pytest.mark.parametrize("grid", [ex.Quantize(4), ex.Share(2)])
def test_momentum_goes_on_where_grids_begin_to_learn_after_weights(grid: ex.Quantize | ex.Share) -> None:
    task = labelled(20)
    model, _ = recovered(task, optimizer="SGD", options={"momentum": 0.9}, learning_rate=0.1, during=[ex.Prune(0.5), grid])
    plain, _ = recovered(
        task, optimizer="SGD", options={"momentum": 0.9, "foreach": False}, learning_rate=0.1, during=[ex.Prune(0.5), grid]
    )
    assert [torch.equal(a.read(), b.read()) for a, b in zip(sites(model), sites(plain), strict=True)] == [True, True]


@pytest.mark.parametrize("name", names())
def test_every_optimizer_of_torch_trains(name: str) -> None:
    task = labelled()
    if name == "Muon":  # it takes matrices alone
        with pytest.raises(TaskError, match="optimizer='Muon' does not take the parameters"):
            recovered(task, optimizer=name)
        return
    model, _ = recovered(task, optimizer=name)
    assert not torch.equal(weights(model), weights(task.model))
    assert {"AdamW", "SGD", "Adam", "RMSprop"} < set(names())


def test_the_optimizer_gets_its_options_and_decay() -> None:
    task = labelled(batches=1)
    model, _ = recovered(task, optimizer="SGD", weight_decay=0.5, options={"nesterov": True, "momentum": 0.9}, clip=None)
    own = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    own.load_state_dict(task.model.state_dict())
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3, weight_decay=0.5, momentum=0.9, nesterov=True)
    x, y = task.train[0]  # type: ignore[index]
    nn.functional.cross_entropy(own(x), y).backward()
    optimizer.step()
    assert torch.allclose(weights(model), weights(own), atol=1e-7)


def test_gradients_go_unclipped_where_that_is_asked_for() -> None:
    task = labelled(batches=1, scale=300.0)
    moved = {
        clip: float((weights(recovered(task, optimizer="SGD", clip=clip)[0]) - weights(task.model)).norm())
        for clip in (None, 5.0, 1.0)
    }
    assert moved[1.0] == pytest.approx(1e-3, rel=0.01)
    assert moved[5.0] == pytest.approx(5e-3, rel=0.01)
    assert moved[None] > 10 * moved[5.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": "Adamw"}, "optimizer='Adamw' .*is not known; use one of .*AdamW"),
        ({"optimizer": "LBFGS"}, "is not known"),
        ({"optimizer": 3}, "is not known"),
        ({"options": {"beta": 1}}, "unexpected keyword argument 'beta'; its options are betas"),
        ({"options": {"betas": [0.9, 1.5]}}, "Invalid beta parameter.*its options are"),
        ({"options": {"betas": [0.9]}}, "does not work in torch: .*its options are betas"),
        ({"options": {"lr": 0.1}}, "options holds 'lr'.*learning_rate="),
        ({"options": [0.9]}, "is no dict"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, "does not work in torch"),
        ({"schedule": "step"}, "schedule='step' .*is not known; use one of 'cosine', 'one-cycle', 'constant'"),
        ({"schedule": ["cosine"]}, "is not known"),
        ({"clip": 0}, "clip=0 is no norm"),
        ({"accumulate": 1.5}, "accumulate=1.5 is no number of batches"),
        ({"average": 1.0}, r"average=1.0 is .* must be in \[0, 1\)"),
        ({"average": -0.1}, "average=-0.1"),
    ],
)
def test_knobs_that_make_no_sense_are_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RangeError, match=words):
        ex.Recover(**arguments)


def test_the_knobs_of_the_loop_go_through_a_file() -> None:
    step = ex.Recover(
        optimizer="SGD", options={"momentum": 0.9}, schedule="one-cycle", clip=None, accumulate=4, average=0.99, weight_decay=1e-4
    )
    adam = ex.Recover(optimizer="Adam", options={"betas": [0.8, 0.9]})
    assert from_yaml(to_yaml([step, adam])) == (step, adam)
    assert line(adam) == "Recover(optimizer='Adam', options={'betas': (0.8, 0.9)})"


@pytest.mark.parametrize("steps", [[], [ex.Prune(0.6)], [ex.Quantize(4)]], ids=str)
def test_the_average_is_that_of_the_weights_after_each_update(steps: list[ex.Step]) -> None:
    task = labelled(batches=12)
    small, _ = ex.run(task, steps) if steps else (task.model, ())
    student = ex.prepare(ex.Task(small, calibration=task.calibration))
    seen = [weights(student)]
    Loop(learning_rate=1e-2, average=0.8).run(
        student, Objective(task, 0.0, 4.0), Examples(task, 1.0), [lambda: seen.append(weights(student))]
    )
    wanted = seen[0]
    for updates, now in enumerate(seen[1:], 1):
        wanted = torch.lerp(wanted, now, 1 - min(0.8, (1 + updates) / (10 + updates)))
    assert torch.allclose(weights(student), wanted, atol=1e-6)
    assert not torch.allclose(weights(student), seen[-1], atol=1e-4)


def test_the_average_keeps_zeros_and_grids_that_are_named_on_the_way() -> None:
    task = labelled(batches=20)
    for during in ([ex.Prune(0.7)], [ex.Prune(0.5), ex.Share(3)]):
        model, _ = recovered(task, epochs=2, learning_rate=1e-2, during=during, average=0.9)
        assert zeros(model) > 0.45
        for site in sites(model):
            assert len(site.read().unique()) <= (8 if len(during) == 2 else 1000)


def test_running_statistics_are_averaged_with_the_weights() -> None:
    task = labelled(batches=8)
    norm = nn.BatchNorm1d(6)
    seen = []
    bound = replace(task, model=nn.Sequential(norm, *task.model))
    student = ex.prepare(bound)
    Loop(learning_rate=1e-3, average=0.5).run(
        student,
        Objective(bound, 0.0, 4.0),
        Examples(bound, 1.0),
        [lambda: seen.append(student[0].running_mean.clone())],  # type: ignore[index]
    )
    wanted = torch.zeros(6)
    for updates, now in enumerate(seen, 1):
        wanted = torch.lerp(wanted, now, 1 - min(0.5, (1 + updates) / (10 + updates)))
    assert torch.allclose(student[0].running_mean, wanted, atol=1e-6)  # type: ignore[index]
    assert int(student[0].num_batches_tracked) == 8  # type: ignore[index]


class Shrinking:
    """Says that it holds eight batches, gives as many the first time, and then as many as told."""

    def __init__(self, then: int) -> None:
        self.then, self.passes = then, 0
        self.pairs = list(labelled(batches=8).train)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        yield from self.pairs[: 8 if self.passes == 1 else self.then]


@pytest.mark.parametrize(("then", "batches", "said"), [(8, 24, ""), (4, 24, "gave 4 in a pass"), (0, 8, "ended after 8 of 24")])
def test_a_source_that_gives_fewer_batches_later_still_trains_to_the_end(then: int, batches: int, said: str) -> None:
    task = replace(labelled(), train=Shrinking(then))
    model, record = recovered(task, epochs=3, during=[ex.Prune(0.8)])
    assert record.figures["batches"] == batches
    assert zeros(model) > 0.75
    told = " ".join(f"{change.what}, {change.why}" for change in record.skipped)
    assert said in told
    assert bool(told) == bool(said)
