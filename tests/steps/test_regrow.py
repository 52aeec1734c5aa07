"""Dynamic sparse training: the density of every batch, where weights go and come, and that what is out is out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import enxuto as ex
from enxuto.errors import RangeError, RecipeError, TaskError
from enxuto.functional.regrow import erdos_renyi, exchanged
from enxuto.sites import sites
from enxuto.training.tighten import Look
from toys import Mlp, inputs, seeded

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "AdamW, decay": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
}
BATCHES = 12


def trained(
    step: ex.Regrow, *, kind: str = "AdamW, decay", before: Any = None, each: Any = None, steps: list[Any] | None = None
) -> nn.Module:
    """A fresh network, sparse from the start, in a loop of one's own."""
    x, y = inputs(Mlp), torch.arange(8) % 5
    steps = [step] if steps is None else steps
    model = ex.prepare(ex.Task(seeded(Mlp), calibration=[x]), steps)
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = ex.Schedule(model, steps, batches=BATCHES)
    for batch in range(BATCHES):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        told = before(model) if before else None
        schedule.observe(optimizer)
        optimizer.step()
        schedule.step()
        if each:
            each(model, optimizer, batch, told)
    return model


def kept(model: nn.Module) -> list[Tensor]:
    return [weight.tensor.keep.clone() for weight in sites(model)]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("by", ["gradient", "random"])
def test_at_every_batch_no_more_are_alive_and_what_is_out_is_zero_and_forgotten(kind: str, by: Any) -> None:
    total = sum(weight.read().numel() for weight in sites(seeded(Mlp)))
    allowed = total - round(0.8 * total)
    moved = []

    def each(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, told: Any) -> None:
        shipped = ex.convert(model)
        alive = 0
        for weight, small, was in zip(sites(model), sites(shipped), told, strict=True):
            leaf = weight.tensor
            out = ~leaf.keep  # type: ignore[union-attr]
            alive += int(leaf.keep.count_nonzero())  # type: ignore[union-attr]
            assert not leaf().masked_select(out).any()  # type: ignore[union-attr]
            assert not leaf.leaf.masked_select(out | ~was).any(), "what comes back starts from zero"  # type: ignore[union-attr]
            assert not small.read().masked_select(out).any()
            for held in optimizer.state[leaf.leaf].values():  # type: ignore[union-attr]
                if isinstance(held, Tensor) and held.ndim:
                    assert not held.masked_select(out | ~was).any(), "so does its momentum"
            moved.append(bool((leaf.keep != was).any()))  # type: ignore[union-attr]
        assert alive == allowed

    trained(ex.Regrow(0.8, by=by, updates=4), kind=kind, before=kept, each=each)
    assert any(moved)
    assert not all(moved)


def test_the_largest_gradients_come_back_and_the_smallest_weights_go() -> None:
    """Against the obvious: the gradient of a dense twin that computes with the same weights."""
    x, y = inputs(Mlp), torch.arange(8) % 5
    seen = []

    def before(model: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
        twin = ex.convert(model)
        F.cross_entropy(twin(x), y).backward()
        grads = [dict(twin.named_parameters())[weight.key].grad for weight in sites(twin)]
        leaves = [weight.tensor for weight in sites(model)]
        return [(leaf.keep.clone(), leaf.leaf.detach().clone(), g) for leaf, g in zip(leaves, grads, strict=True)]  # type: ignore

    def each(model: nn.Module, optimizer: object, batch: int, told: Any) -> None:
        for (keep, leaf, gradient), now in zip(told, kept(model), strict=True):
            if torch.equal(keep, now):
                continue
            count = int((keep & ~now).count_nonzero())
            came = gradient.abs()[now & ~keep]
            stayed_out = gradient.abs()[~now & ~keep]
            assert came.min() >= stayed_out.max() - 1e-7
            assert leaf.abs()[keep & ~now].max() <= leaf.abs()[keep].sort().values[2 * count :].min()
            seen.append(count)

    trained(ex.Regrow(0.7, updates=6), before=before, each=each)
    assert sum(seen) > 3


def test_the_pattern_is_at_rest_after_its_end_and_the_share_falls() -> None:
    patterns: list[list[Tensor]] = []
    trained(ex.Regrow(0.5, updates=BATCHES, by="random", end=0.5), each=lambda model, *_: patterns.append(kept(model)))
    moved = [
        sum(int((a & ~b).count_nonzero()) for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(patterns)
    ]
    assert all(moved[:5])
    assert not any(moved[5:])
    assert moved[4] < moved[0]


@pytest.mark.parametrize("spread", ["lamp", "erdos-renyi", "uniform"])
def test_a_fresh_network_is_sparse_before_the_first_batch(spread: Any) -> None:
    task = ex.Task(seeded(Mlp), calibration=[inputs(Mlp)])
    for gradual in (False, True):
        model = ex.prepare(task, [ex.Regrow(0.75, spread=spread)], gradual=gradual)
        found = [weight.read() for weight in sites(model)]
        total = sum(each.numel() for each in found)
        alive = [int(each.count_nonzero()) for each in found]
        assert sum(alive) <= total - round(0.75 * total)
        assert sum(alive) >= total - round(0.75 * total) - len(found)
        if spread == "uniform":
            assert alive == [int(0.25 * each.numel()) for each in found]
        if spread == "erdos-renyi":
            parts = erdos_renyi([each.shape for each in found], 0.75)
            assert alive == [int(part * each.numel() + 1e-6) for part, each in zip(parts, found, strict=True)]
            assert len(set(parts)) > 1


def test_what_is_sparser_already_stays_as_sparse_and_zeros_of_others_are_not_touched() -> None:
    x = inputs(Mlp)
    pruned, _ = ex.run(ex.Task(seeded(Mlp), calibration=[x]), [ex.Prune(0.9)])
    alive = sum(int(weight.read().count_nonzero()) for weight in sites(pruned))
    model = ex.prepare(ex.Task(pruned, calibration=[x]), [ex.Regrow(0.5, updates=5)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = ex.Schedule(model, [ex.Regrow(0.5, updates=5)], batches=10)
    for _ in range(10):
        F.cross_entropy(model(x), torch.arange(8) % 5).backward()
        schedule.observe(optimizer)
        optimizer.step()
        schedule.step()
    assert sum(int(keep.count_nonzero()) for keep in kept(model)) == alive


def test_pruning_that_tightens_and_weights_that_come_back_go_together() -> None:
    """Gradual pruning with regrowth: ever fewer alive, and never more than either allows."""
    alive: list[int] = []
    steps = [ex.Prune(0.9), ex.Regrow(0.5, updates=BATCHES, by="random")]
    x, y = inputs(Mlp), torch.arange(8) % 5
    pairs = [(x, y)] * BATCHES

    class Counting(ex.Regrow):
        def rehearse_(self, model: nn.Module, strength: float) -> None:
            super().rehearse_(model, strength)
            alive.append(sum(int(keep.count_nonzero()) for keep in kept(model)))

    steps[1] = Counting(0.5, updates=BATCHES, by="random")
    task = ex.Task(seeded(Mlp), calibration=[x], train=pairs, loss=F.cross_entropy)
    small, _ = ex.Recover(during=steps, tight=0.8)(task.model, task)
    total = sum(weight.read().numel() for weight in sites(small))
    assert alive[0] == total - round(0.5 * total)
    assert alive == sorted(alive, reverse=True)
    assert sum(int(weight.read().count_nonzero()) for weight in sites(small)) <= total - round(0.9 * total)


@pytest.mark.parametrize("tight", [0.0, 0.7])
def test_recover_trains_with_it_and_codes_on_top(tight: float) -> None:
    x, y = inputs(Mlp), torch.arange(8) % 5
    task = ex.Task(seeded(Mlp), calibration=[x], train=[(x, y)] * 20, loss=F.cross_entropy)
    step = ex.Recover(during=[ex.Regrow(0.8, updates=5), ex.Quantize(4)], learning_rate=1e-2, tight=tight)
    small, record = step(task.model, task)
    again, _ = step(task.model, task)
    for weight, other in zip(sites(small), sites(again), strict=True):
        assert torch.equal(weight.read(), other.read()), "the same seed, the same bytes"
    total = sum(weight.read().numel() for weight in sites(small))
    assert sum(int(weight.read().count_nonzero()) for weight in sites(small)) <= total - round(0.8 * total)
    assert record.figures["loss_last"] < record.figures["loss_first"]


def test_a_schedule_that_was_not_shown_the_gradients_says_so() -> None:
    model = ex.prepare(ex.Task(seeded(Mlp), calibration=[inputs(Mlp)]), [ex.Regrow(0.8)])
    schedule = ex.Schedule(model, [ex.Regrow(0.8)], batches=4)
    with pytest.raises(TaskError, match=r"Regrow looks at gradients, .* batch 1; call schedule.observe\(optimizer\) between"):
        schedule.step()
    schedule.observe(torch.optim.SGD(model.parameters()))
    schedule.step()
    with pytest.raises(TaskError, match="batch 2"):
        schedule.step()


def test_a_model_that_was_not_prepared_for_it_is_refused() -> None:
    model = ex.prepare(ex.Task(seeded(Mlp), calibration=[inputs(Mlp)]), [ex.Prune(0.5, layers="fc2")])
    with pytest.raises(RecipeError, match=r"'fc1.weight' has no leaf .*; give prepare the same steps"):
        ex.Schedule(model, [ex.Regrow(0.8)], batches=4).observe(torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 is the fraction"),
        ({"by": "luck"}, "by='luck' is not known; use 'gradient' or 'random'"),
        ({"spread": "even"}, "spread='even' is not known; use one of 'lamp'"),
        ({"share": 0.0}, "share=0.0 is the part of the weights"),
        ({"updates": 0}, "updates=0 is no number of exchanges"),
        ({"end": 0}, "end=0 is the part of the training"),
        ({"seed": -1}, "seed=-1 is no whole number"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RangeError, match=words):
        ex.Regrow(**arguments)


def test_it_does_nothing_by_itself_and_says_so() -> None:
    task = ex.Task(seeded(Mlp), calibration=[inputs(Mlp)])
    with pytest.raises(RecipeError, match=r"does nothing by itself; write Recover\(during=\[Regrow\(sparsity=0.8\)\]\)"):
        ex.run(task, [ex.Regrow(0.8)])
    with pytest.raises(RangeError, match=r"sparsity=0.999 with spread='uniform' leaves none of the .* weights of 'fc1.weight'"):
        ex.prepare(task, [ex.Regrow(0.999, spread="uniform")])


def test_exchanges_keep_the_count_whatever_the_values() -> None:
    chance = torch.Generator().manual_seed(0)
    for share in (0.1, 0.5, 1.0):
        for alive in (1, 7, 29, 30):
            weight = torch.randn(5, 6, generator=chance)
            keep = torch.zeros(30, dtype=torch.bool)
            keep[torch.randperm(30, generator=chance)[:alive]] = True
            keep = keep.view(5, 6)
            now, stayed = exchanged(weight, keep, torch.rand(5, 6, generator=chance), share)
            assert int(now.count_nonzero()) == alive
            assert not bool((stayed & ~(now & keep)).any())


def test_what_was_met_does_not_travel_with_copies() -> None:
    model = ex.prepare(ex.Task(seeded(Mlp), calibration=[inputs(Mlp)]), [ex.Regrow(0.8)])
    model(inputs(Mlp)).sum().backward()
    other = copy.deepcopy(model)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert not any("met" in name for name in model.state_dict())


def test_gradients_are_the_mean_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process sees its own batches, and all must choose the same pattern."""
    model = ex.prepare(ex.Task(seeded(Mlp), calibration=[inputs(Mlp)]), [ex.Regrow(0.8)])
    optimizer = torch.optim.SGD(model.parameters())

    def gradients() -> list[Tensor]:
        model(inputs(Mlp)).sum().backward()
        return [gradient for _, _, gradient in Look(optimizer, 0, 1).met(model, "*") if gradient is not None]

    alone = gradients()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(6))
    assert all(torch.allclose(a * 1.5, b) for a, b in zip(alone, gradients(), strict=True))
