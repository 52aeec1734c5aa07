"""What a step of `Recover` with a term takes beside the bare torch loop that computes the same loss as a tutorial writes it.

The same network, batches, teacher, losses, clipping and schedule in both; the teacher is asked in each step by both. CPU
milliseconds of a step on one thread, as in `training_speed.py`: the slope between a short and a long training, the two taking
turns, medians of some rounds with the least and the largest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import enxuto as ex
from enxuto import zoo
from enxuto.surgery import duplicate
from file_coders import NETWORKS
from training_speed import SHARE, TEMPERATURE, clocked

ROUNDS = 3
LENGTHS = {"lenet-300-100": (20, 120), "resnet-20": (4, 16), "transformer": (5, 25)}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of what student and teacher return, and labels


def features(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(ours, theirs) / theirs.var()


def attention(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    one, other = (F.normalize(each.pow(2).mean(1).flatten(1)) for each in (ours, theirs))
    return (one - other).pow(2).sum(1).mean()


def relations(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    """As the authors wrote it, but for cdist, which they had not."""
    told = []
    for each in (ours.flatten(1), theirs.flatten(1)):
        apart = torch.cdist(each, each)
        seen = F.normalize(each.unsqueeze(0) - each.unsqueeze(1), dim=2)
        told.append((apart / apart[apart > 0].mean(), torch.bmm(seen, seen.transpose(1, 2)).flatten()))
    return F.smooth_l1_loss(told[0][0], told[1][0]) + 2 * F.smooth_l1_loss(told[0][1], told[1][1])


def contrast(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    one, other = (F.normalize(each.flatten(1)) for each in (ours, theirs))
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def logits(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(ours, theirs)


def decoupled(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    """As the authors wrote it."""
    target = F.one_hot(labels, ours.shape[1]).bool()
    one, other = (F.softmax(each / 4, 1) for each in (ours, theirs))
    pairs = [torch.stack([(each * target).sum(1), (each * ~target).sum(1)], 1) for each in (one, other)]
    sure = F.kl_div(pairs[0].log(), pairs[1], reduction="batchmean")
    rest = [F.log_softmax(each / 4 - 1000.0 * target, 1) for each in (ours, theirs)]
    return 16 * (sure + 2 * F.kl_div(rest[0], rest[1], reduction="batchmean", log_target=True))


def tokens(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(ours, theirs) / theirs.var()


def token_relations(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    one, other = (F.log_softmax(each @ each.transpose(1, 2) / each.shape[-1] ** 0.5, -1) for each in (ours, theirs))
    return F.kl_div(one.flatten(0, 1), other.flatten(0, 1), reduction="batchmean", log_target=True)


T = ex.terms
WAYS: dict[str, list[tuple[Any, str, Loss]]] = {
    "lenet-300-100": [
        (T.Features("relu2", 1.0), "relu2", features),
        (T.Relations("relu2", 1.0), "relu2", relations),
        (T.Contrast("relu2", 1.0), "relu2", contrast),
        (T.Logits(1.0), "", logits),
        (T.Decoupled(1.0), "", decoupled),
    ],
    "resnet-20": [
        (T.Features("stages.1", 1.0), "stages.1", features),
        (T.Attention("stages.1", 1.0), "stages.1", attention),
        (T.Relations("pool", 1.0), "pool", relations),
        (T.Contrast("pool", 1.0), "pool", contrast),
    ],
    "transformer": [
        (T.Tokens("blocks.1", 1.0), "blocks.1", tokens),
        (T.TokenRelations("blocks.1", 1.0), "blocks.1", token_relations),
    ],
}
"""By network: a term, the layer it looks at, and the same in plain torch."""


def main(names: list[str]) -> None:
    """Each term on each network."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in names or WAYS:
        model, task = _network(name)
        few, many = LENGTHS[name]
        batches = [(x, y) for x, y in task.train][:many]  # type: ignore[union-attr]
        for term, path, loss in WAYS[name]:
            loops = {"enxuto": partial(ours, model=model, term=term), "bare": partial(bare, model=model, path=path, loss=loss)}
            found: dict[str, list[float]] = {loop: [] for loop in loops}
            for loop in loops.values():
                loop(batches[:2])
            for _ in range(ROUNDS):
                for loop, run in loops.items():
                    spent = [clocked(run, batches[:count]) for count in (few, many)]
                    found[loop].append(1e3 * (spent[1] - spent[0]) / (many - few))
            ratios = [one / other for one, other in zip(found["enxuto"], found["bare"], strict=True)]
            row: dict[str, object] = {"network": name, "term": type(term).__name__}
            row |= {f"{loop} ms": median(times) for loop, times in found.items()}
            rows.append(row | {"ratio": median(ratios), "from": min(ratios), "to": max(ratios)})
            print(rows[-1], flush=True)
    common.tell("terms_speed", "a step with a term takes at most 1.3 times the bare torch loop of the same arithmetic", rows)


def _network(name: str) -> tuple[nn.Module, ex.Task]:
    """One as it is built: how much it knows takes no time."""
    torch.manual_seed(common.SEED)
    model = zoo.build(name, **NETWORKS[name][2]).eval()
    return model, common.task(model)


def ours(batches: Sequence[Any], model: nn.Module, term: Any) -> None:
    """One `Recover` on these batches, labels and teacher half and half and the term."""
    task = ex.Task(model, calibration=[batches[0][0]], train=list(batches), loss=F.cross_entropy)
    ex.Recover(teacher=SHARE, temperature=TEMPERATURE, terms=[term])(model, task)


def bare(batches: Sequence[Any], model: nn.Module, path: str, loss: Loss) -> None:
    """The loop of a tutorial."""
    teacher, student = duplicate(model).eval(), duplicate(model)
    seen: list[Tensor] = []
    for each in (student, teacher) if path else ():
        each.get_submodule(path).register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    for done, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * done / len(batches)))
        optimizer.zero_grad()
        seen.clear()
        given = student(x)
        with torch.no_grad():
            wanted = teacher(x)
        soft = F.kl_div(
            F.log_softmax(given / TEMPERATURE, -1),
            F.log_softmax(wanted / TEMPERATURE, -1),
            reduction="batchmean",
            log_target=True,
        )
        total = SHARE * TEMPERATURE**2 * soft + (1 - SHARE) * F.cross_entropy(given, y)
        total = total + loss(*(seen if path else (given, wanted)), y)
        total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        total.item()


if __name__ == "__main__":
    main(sys.argv[1:])
