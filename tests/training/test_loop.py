"""The loop itself: what is called when, and what a training comes to whatever happens meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.training.examples import examples
from enxuto.training.loop import LONGEST, Loop
from enxuto.training.objective import Objective


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

    batches, total = examples(task, 1.0)
    objective = Objective(task, 0.0, 4.0)
    Loop(1e-2).run(
        student,
        objective,
        batches,
        total,
        [lambda: done.append(student[0].weight.detach().clone())],
        before=[look],  # type: ignore[union-attr,list-item]
    )
    assert len(seen) == len(done) == 6
    assert max(length for length, _ in seen) <= LONGEST * 1.001
    assert all(torch.equal(then, now) for then, (_, now) in zip(done, seen[1:], strict=False)), "the update comes after the look"
    assert not torch.equal(done[0], seen[0][1])
