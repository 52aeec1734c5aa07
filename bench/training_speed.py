"""What a step of `Recover` takes beside the bare torch loop that does the same arithmetic.

The same network, batches, teacher, losses, clipping and schedule of the learning rate; only the loop is another: the bare one is
what a tutorial writes, with torch's own AdamW as it comes. "careful" is the same with AdamW fused and the teacher's answers kept.
CPU milliseconds of a step on one thread: the slope between a short and a long training, which what comes before and after does
not count in; the ways take turns, and the median of some rounds is told, with the least and the largest. `threads` asks instead
what a second thread is worth.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import common
import enxuto as ex
from enxuto.functional.rate import prices
from enxuto.progress import listening
from enxuto.surgery import duplicate, to_float
from file_coders import network

BATCH, TEMPERATURE, SHARE = 128, 4.0, 0.5
SHORT, LONG, ROUNDS = 20, 120, 5
STEPS = {"lenet-300-100": 1, "resnet-20": 4}  # how many times fewer steps of what takes longer
BITS = 4
SPARSE = 0.9
FINEST, RATE, LOOK = 127, 2.5e-6, 5  # codes of 8 bits, their price, and after how many batches it is made anew


@dataclass(frozen=True)
class Way:
    """A technique: what comes before `Recover`, what goes into it, and the same in bare torch."""

    before: Sequence[ex.Step]
    options: dict[str, Any]
    bare: Callable[[nn.Module], Callable[[], None]]  # makes a network so, and says what is done after each step
    epochs: int = 1  # in which the same batches come again
    also: Callable[[nn.Module], Tensor] | None = None  # what is added to the loss


def main(names: list[str]) -> None:
    """Each technique on each network."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    asked = [name for name in names if name in WAYS] or list(WAYS)
    for name in [name for name in names if name in STEPS] or STEPS:
        model, task = network(name)
        batches = [(x, y) for x, y in task.train][: LONG // STEPS[name]]  # type: ignore[union-attr]
        short = SHORT // STEPS[name]
        for what, way in ((what, WAYS[what]) for what in asked):
            small, _ = ex.run(task, list(way.before)) if way.before else (model, None)
            loops = {
                "enxuto": partial(ours, model=model, small=small, way=way),
                "bare": partial(bare, model=model, small=small, way=way, careful=False),
                "careful": partial(bare, model=model, small=small, way=way, careful=True),
            }
            mine, few = (count // way.epochs for count in (len(batches), short))
            found: dict[str, list[float]] = {loop: [] for loop in loops}
            for loop in loops.values():
                loop(batches[:2])
            for _ in range(ROUNDS):
                for loop, run in loops.items():
                    spent = [clocked(run, batches[:count]) for count in (few, mine)]
                    found[loop].append(1e3 * (spent[1] - spent[0]) / ((mine - few) * way.epochs))
            row: dict[str, object] = {"network": name, "technique": what}
            row |= {f"{loop} ms": median(times) for loop, times in found.items()}
            ratios = [one / other for one, other in zip(found["enxuto"], found["bare"], strict=True)]
            row |= {"ratio": median(ratios), "from": min(ratios), "to": max(ratios)}
            rows.append(row)
            print(row, flush=True)
    common.tell("training_speed", "a step of Recover takes at most 1.3 times the bare torch loop of the same arithmetic", rows)


def threads(names: Sequence[str]) -> None:
    """Milliseconds on the wall of a batch of `Recover` with one thread and with two, in turn; the least is that of a processor
    that was free just then. Whether the weights are the same bytes is told as well."""
    rows: list[dict[str, object]] = []
    for name in names:
        model, task = network(name)
        batches = [(x, y) for x, y in task.train][: LONG // STEPS[name]]  # type: ignore[union-attr]
        found: dict[int, list[float]] = {1: [], 2: []}
        made = {}
        for _ in range(ROUNDS):
            for count in found:
                torch.set_num_threads(count)
                stamps: list[float] = []
                with listening(lambda *_, stamps=stamps: stamps.append(time.perf_counter())):  # type: ignore[misc]
                    bound = ex.Task(model, calibration=[batches[0][0]], train=batches, loss=F.cross_entropy)
                    small, _ = ex.Recover(teacher=SHARE)(model, bound)
                found[count] += [1e3 * (after - before) for before, after in pairwise(stamps)]
                made[count] = torch.cat([each.detach().flatten() for each in small.parameters()])
        row: dict[str, object] = {"network": name, "same bytes": bool(torch.equal(made[1], made[2]))}
        for count, times in found.items():
            row |= {f"{count} threads, least ms": min(times), f"{count} threads, median ms": median(times)}
        rows.append(row)
        print(row, flush=True)
    common.tell("training_threads", "two threads are no slower than one where the processor is free", rows)


def clocked(run: Callable[[Any], None], batches: Sequence[Any]) -> float:
    """CPU seconds."""
    start = time.process_time()
    run(batches)
    return time.process_time() - start


def ours(batches: Sequence[Any], model: nn.Module, small: nn.Module, way: Way) -> None:
    """One `Recover` on these batches."""
    task = ex.Task(model, calibration=[batches[0][0]], train=list(batches), loss=F.cross_entropy)
    ex.Recover(epochs=way.epochs, teacher=SHARE, temperature=TEMPERATURE, **way.options)(small, task)


def bare(batches: Sequence[Any], model: nn.Module, small: nn.Module, way: Way, *, careful: bool) -> None:
    """The loop of a tutorial."""
    teacher, student = duplicate(model).eval(), to_float(small)
    then = way.bare(student)
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0, fused=careful or None)
    with torch.no_grad():
        kept = [teacher(x) for x, _ in batches] if careful else []
    for done, (x, y) in enumerate(list(batches) * way.epochs):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * done / (len(batches) * way.epochs)))
        optimizer.zero_grad()
        given = student(x)
        if careful:
            wanted = kept[done % len(batches)]
        else:
            with torch.no_grad():
                wanted = teacher(x)
        soft = F.kl_div(
            F.log_softmax(given / TEMPERATURE, -1),
            F.log_softmax(wanted / TEMPERATURE, -1),
            reduction="batchmean",
            log_target=True,
        )
        loss = SHARE * TEMPERATURE**2 * soft + (1 - SHARE) * F.cross_entropy(given, y)
        if way.also is not None:
            loss = loss + way.also(student)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        then()
        loss.item()


def weighted(model: nn.Module) -> list[nn.Module]:
    """The layers whose weights are compressed."""
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def as_it_is(model: nn.Module) -> Callable[[], None]:
    """Nothing more than the training."""
    return lambda: None


def masked(model: nn.Module) -> Callable[[], None]:
    """Zeros are put back after each step."""
    masks = [(layer.weight, (layer.weight != 0).float()) for layer in weighted(model)]

    @torch.no_grad()
    def then() -> None:
        for weight, mask in masks:
            weight.mul_(mask)

    return then


class Stepped(nn.Module):
    """Learned steps, one a row (Esser et al. 2020)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.limit = 2 ** (BITS - 1) - 1
        self.scale = nn.Parameter(weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)) / self.limit)

    def forward(self, weight: Tensor) -> Tensor:
        steps = (weight / self.scale).clamp(-self.limit, self.limit)
        return (steps + (steps.round() - steps).detach()) * self.scale


class Shared(nn.Module):
    """A codebook that learns (Han et al. 2016)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.entries = nn.Parameter(weight.detach().unique())

    def forward(self, weight: Tensor) -> Tensor:
        entries = self.entries.detach().sort().values
        codes = torch.bucketize(weight.detach(), (entries[1:] + entries[:-1]) / 2)
        return self.entries[codes] + (weight - weight.detach())


def seen_as(kind: Callable[[Tensor], nn.Module]) -> Callable[[nn.Module], Callable[[], None]]:
    """Weights are seen through such a module."""

    def made(model: nn.Module) -> Callable[[], None]:
        for layer in weighted(model):
            register_parametrization(layer, "weight", kind(layer.weight))
        return lambda: None

    return made


class Priced(nn.Module):
    """A learned step for a tensor, and what its codes take: Oktay et al. 2020, with the prices of the codes themselves."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.size = nn.Parameter((weight.abs().max() / FINEST).log())
        self.done, self.bits = 0, torch.zeros(())

    def forward(self, weight: Tensor) -> Tensor:
        steps = (weight / self.size.exp()).clamp(-FINEST, FINEST)
        if not self.done % LOOK:
            self.prices = prices(steps.detach().flatten(1).round().abs(), FINEST)
        self.done += 1
        sizes = steps.flatten(1).abs()
        self.bits = (sizes * self.prices.slopes(sizes.detach())).sum()
        return (steps + (steps.round() - steps).detach()) * self.size.exp()


def bits(model: nn.Module) -> Tensor:
    """What all codes take, times what a bit is worth."""
    return RATE * sum((module.bits for module in model.modules() if isinstance(module, Priced)), torch.zeros(()))


class Masked(nn.Module):
    """Weights times a mask, and the gradient of the product (Evci et al. 2020; Sanh et al. 2020)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", (weight.abs() >= weight.detach().abs().flatten().quantile(SPARSE)).float())
        self.score = torch.zeros_like(weight.detach())
        self.product = torch.empty(0)

    def forward(self, weight: Tensor) -> Tensor:
        self.product = weight * self.mask
        if self.product.requires_grad:
            self.product.retain_grad()
        return self.product


def watched(model: nn.Module) -> Callable[[], None]:
    """The gradients of all weights, also of those that are out, are gathered; to choose anew is no part of most steps."""
    seen_as(Masked)(model)
    held = [(layer.parametrizations.weight[0], layer.parametrizations.weight.original) for layer in weighted(model)]

    @torch.no_grad()
    def then() -> None:
        for masked, weight in held:
            masked.score -= weight * masked.product.grad

    return then


class Closed(nn.Module):
    """A hard concrete gate for each weight (Louizos et al. 2018)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.full_like(weight, 3.0))

    def forward(self, weight: Tensor) -> Tensor:
        chance = torch.rand_like(self.odds).clamp(1e-6, 1 - 1e-6)
        return weight * (torch.sigmoid((chance.logit() + self.odds) * 1.5) * 1.2 - 0.1).clamp(0, 1)


def still_open(model: nn.Module) -> Tensor:
    """What is added for gates."""
    odds = [each.odds for each in model.modules() if isinstance(each, Closed)]
    return 1e-6 * torch.stack([torch.sigmoid(each + 1.6).sum() for each in odds]).sum()


class Below(nn.Module):
    """A threshold that learns (Kusupati et al. 2020)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.tensor(-6.0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign() * F.relu(weight.abs() - torch.sigmoid(self.inner))


def thresholds(model: nn.Module) -> Tensor:
    """What is added for thresholds."""
    return 1e-3 * torch.stack([each.inner.square() for each in model.modules() if isinstance(each, Below)]).sum()


WAYS = {
    "teacher and labels": Way((), {}, as_it_is),
    "the same, four epochs": Way((), {}, as_it_is, epochs=4),
    "90 % zeros": Way([ex.Prune(0.9)], {}, masked),
    "steps, 4 bits a channel": Way([ex.Quantize(bits=BITS)], {}, seen_as(Stepped)),
    "16 shared values": Way([ex.Share(bits=BITS)], {}, seen_as(Shared)),
    "coded bits priced": Way([ex.Quantize(8, per="tensor", fit="absmax")], {"rate": RATE}, seen_as(Priced), also=bits),
    "zeros that move": Way((), {"during": [ex.Regrow(SPARSE, updates=4, end=1.0)]}, seen_as(Masked)),
    "zeros by movement": Way((), {"during": [ex.Prune(SPARSE, scores="movement")]}, watched),
    "gates, L0": Way((), {"terms": [ex.terms.L0(SPARSE)]}, seen_as(Closed), also=still_open),
    "soft thresholds": Way((), {"terms": [ex.terms.SoftThreshold(SPARSE)]}, seen_as(Below), also=thresholds),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["threads"]:
        threads(sys.argv[2:] or list(STEPS))
    else:
        main(sys.argv[1:])
