"""Tuning: a few numbers of a network move so that its outputs come back to the original's, and its weights keep their shape.

Biases, norms and other vectors take a change each, weights a factor. A unit of a change is what would move the outputs, to first
order, by as much as they spread, so that one learning rate suits numbers of any scale.
Source: Frankle, Schwab, Morcos 2021, "Training BatchNorm and only BatchNorm", for how much these numbers alone can do; Li et al.
2024, "Norm tweaking", for norms after quantization. Deviation: the outputs are compared, not each layer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from enxuto.batches import Batch, arguments, batch_size, parts
from enxuto.calls import attempt, evaluating, repeatable
from enxuto.errors import NothingChangedError
from enxuto.evidence.influence import moved_by
from enxuto.evidence.samples import in_parts, small_batch
from enxuto.functional.distill import same_values
from enxuto.functional.likeness import Spread
from enxuto.layers.computed import free
from enxuto.outputs import Outputs, output_tensors, said_of
from enxuto.progress import counted
from enxuto.select import Patterns, matches
from enxuto.sites import Site, parameters, sites, together
from enxuto.surgery import to_float
from enxuto.training.loop import pace

UPDATE = 64  # samples that an update sees
WARM = 5  # the part of all updates that warms up is one in so many
ASIDE = 8  # one part in so many is kept aside, to judge by


@dataclass(frozen=True, eq=False)
class Lever:
    """What may change of a parameter: its values by `change` in units of `unit`, or, for a weight, by the factor exp(change)."""

    site: Site
    start: Tensor
    unit: float | None  # None for a weight
    keep: Tensor | None  # values that may change
    change: Tensor

    @staticmethod
    def of(site: Site, start: Tensor, unit: float | None) -> Lever:
        """One that changed nothing yet."""
        keep = None if unit is None else free(site.module, site.name, start)
        change = torch.zeros_like(start if unit is not None else start.new_zeros(1), dtype=torch.float32)
        return Lever(site, start, unit, keep, change)

    def now(self) -> Tensor:
        """The values as they are with the change."""
        if self.unit is None:
            return self.start * self.change.exp().to(self.start)
        moved = self.start + (self.unit * self.change).to(self.start)
        return moved if self.keep is None else torch.where(self.keep, moved, self.start)

    def held(self) -> Tensor:
        """The values as they are, whose gradients become those of the change as they come: never are those of all there."""
        values = self.now().requires_grad_()
        values.register_post_accumulate_grad_hook(self._pull_)
        return values

    @torch.no_grad()
    def _pull_(self, values: Tensor) -> None:
        assert values.grad is not None
        gradient, values.grad = values.grad.float(), None
        if self.unit is None:
            gradient = torch.dot(gradient.flatten(), values.float().flatten()).reshape(1)  # of exp, which is its own slope
        else:
            gradient *= self.unit if self.keep is None else self.unit * self.keep
        self.change.grad = gradient if self.change.grad is None else self.change.grad + gradient

    @property
    def pulled(self) -> bool:
        """True where a gradient of the outputs reached it."""
        return self.change.grad is not None


def levers(
    model: nn.Module, plain: nn.Module, layers: Patterns, batch: Batch, seed: int, outputs: Outputs | None
) -> tuple[list[Lever], dict[str, str]]:
    """Those of the layers that match, over the values of `plain`, which is the model in float; and of vectors that the outputs
    do not move with, why, as a batch tells it.

    Raises: TaskError when the model fails on it.
    """
    weights = list(filter(_real, sites(model)))
    known = {id(weight.tensor) for weight in sites(model)}
    first = [places[0] for places in together(parameters(model)).values()]
    vectors = [site for site in first if len(site.shape) <= 1 and id(site.tensor) not in known and _real(site)]
    weights, vectors = ([site for site in each if matches(site.path or site.name, layers)] for each in (weights, vectors))
    moved, missing = moved_by(plain, [batch], vectors, seed, outputs) if vectors else ({}, {})
    vectors = [site for site in vectors if site.key in moved]
    share = 1 / math.sqrt(max(1, len(vectors) + len(weights)))  # of what all of them together move the outputs
    units = {site.key: share / (moved[site.key] * math.sqrt(math.prod(site.shape))) for site in vectors}
    starts = {site.key: plain.get_parameter(site.key).detach() for site in (*vectors, *weights)}
    return [Lever.of(site, starts[site.key], units.get(site.key)) for site in (*vectors, *weights)], missing


def _real(site: Site) -> bool:
    return bool(site.read().is_floating_point()) and math.prod(site.shape) > 0


def halves(model: nn.Module, batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The samples in parts to tune by, and in parts to judge by: each eighth, and one at least.

    Raises: NothingChangedError when they cannot be parted: a single one, or one batch in a network that takes no other number.
    """
    plain, size = to_float(model), min(UPDATE, max(1, sum(map(batch_size, batches)) // ASIDE))
    small = [each for _, part in in_parts(plain, batches) for each in _small(plain, part, size)]
    if len(small) < 2:
        raise NothingChangedError(
            "nothing can be tuned: calibration holds a single sample, or a single batch that the network takes only whole, and "
            "some are to be tuned by and others judged by; give more batches, better hundreds of samples."
        )
    every = min(ASIDE, len(small))
    return [part for place, part in enumerate(small, 1) if place % every], small[every - 1 :: every]


def _small(model: nn.Module, part: Batch, size: int) -> list[Batch]:
    given = batch_size(part)
    return [part] if given <= size or small_batch(model, part) is part else parts(part, -(-given // size))


@dataclass(frozen=True)
class Tuning:
    """One run of Adam over the levers: so many passes over the samples, a rate that falls along a cosine."""

    passes: int
    learning_rate: float
    seed: int

    def run_(
        self, plain: nn.Module, original: nn.Module, pulled: Sequence[Lever], samples: Sequence[Batch], said: Outputs | None
    ) -> int:
        """Moves the levers of a model in float; how many updates it took. Raises: TaskError when the original fails on a part."""
        if not pulled:
            return 0
        lesson = _Wanted.of(original, samples, said)
        optimizer = torch.optim.Adam([lever.change for lever in pulled], lr=self.learning_rate)
        order = list(self._order(samples))
        with evaluating(plain), repeatable(plain), torch.enable_grad():
            for done, places in enumerate(counted(order, "tuning", len(order))):
                optimizer.param_groups[0]["lr"] = self.learning_rate * pace(done, len(order), WARM)
                optimizer.zero_grad()
                seen = sum(batch_size(samples[place]) for place in places)
                values = {lever.site.key: lever.held() for lever in pulled}
                for place in places:
                    outputs = functional_call(plain, values, *arguments(samples[place]))
                    loss = lesson.loss(outputs, place) * (batch_size(samples[place]) / seen)
                    if loss.requires_grad:  # not where all of it runs under no_grad
                        loss.backward()
                    del outputs, loss
                del values  # before the next take memory
                optimizer.step()
        return len(order)

    def _order(self, samples: Sequence[Batch]) -> Iterator[list[int]]:
        """The places of the parts that an update sees, update after update: each pass in another order."""
        chance = torch.Generator().manual_seed(self.seed)
        for _ in range(self.passes):
            gathered: list[int] = []
            for place in torch.randperm(len(samples), generator=chance).tolist():
                gathered.append(place)
                if sum(batch_size(samples[each]) for each in gathered) >= UPDATE:
                    yield gathered
                    gathered = []
            if gathered:
                yield gathered


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What the original answers to each part, and how far each output spreads over all."""

    wanted: Sequence[Mapping[str, Tensor]]
    spreads: Mapping[str, Spread]

    @staticmethod
    def of(original: nn.Module, samples: Sequence[Batch], said: Outputs | None) -> _Wanted:
        with evaluating(original), repeatable(original):
            answers = [
                output_tensors(attempt(original, each, f"part {place} of calibration")) for place, each in enumerate(samples, 1)
            ]
        names = [name for name in said_of(answers[0], said) if answers[0][name].is_floating_point()]
        wanted = [{name: each[name] for name in names if name in each} for each in answers]
        return _Wanted(wanted, {name: Spread.of([each[name] for each in wanted if name in each]) for name in names})

    def loss(self, outputs: Any, place: int) -> Tensor:
        """How far outputs are from the original's, squared, in units of their spread: the mean over all outputs."""
        given, wanted = output_tensors(outputs), self.wanted[place]
        return torch.stack([same_values(given[name], wanted[name], self.spreads[name]) for name in wanted]).mean()
