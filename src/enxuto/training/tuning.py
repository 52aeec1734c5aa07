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
    def of(site: Site, unit: float | None) -> Lever:
        """One that changed nothing yet."""
        start = site.read()
        keep = None if unit is None else free(site.module, site.name, start)
        change = torch.zeros_like(start if unit is not None else start.new_zeros(1), dtype=torch.float32)
        return Lever(site, start, unit, keep, change.requires_grad_())

    def now(self) -> Tensor:
        """The values as they are with the change."""
        if self.unit is None:
            return self.start * self.change.exp().to(self.start)
        moved = self.start + (self.unit * self.change).to(self.start)
        return moved if self.keep is None else torch.where(self.keep, moved, self.start)


def levers(
    model: nn.Module, layers: Patterns, batch: Batch, seed: int, outputs: Outputs | None
) -> tuple[list[Lever], dict[str, str]]:
    """Those of the layers that match, and of parameters that the outputs do not move with, why; as a batch tells it.

    Raises: TaskError when the model fails on it.
    """
    weights = sites(model)
    known = {id(weight.tensor) for weight in weights}
    first = [places[0] for places in together(parameters(model)).values()]
    vectors = [site for site in first if len(site.shape) <= 1 and id(site.tensor) not in known and _real(site)]
    chosen = [site for site in (*vectors, *filter(_real, weights)) if matches(site.path or site.name, layers)]
    moved, missing = moved_by(model, [batch], chosen, seed, outputs)
    chosen = [site for site in chosen if site.key in moved]
    share = 1 / math.sqrt(max(1, len(chosen)))  # of what all of them together move the outputs
    units = {
        site.key: None if id(site.tensor) in known else share / (moved[site.key] * math.sqrt(math.prod(site.shape)))
        for site in chosen
    }
    return [Lever.of(site, units[site.key]) for site in chosen], missing


def _real(site: Site) -> bool:
    return bool(site.read().is_floating_point()) and math.prod(site.shape) > 0


def halves(model: nn.Module, batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The samples in parts to tune by, and in parts to judge by: each eighth, and one at least.

    Raises: NothingChangedError when they cannot be parted: a single one, or one batch in a network that takes no other number.
    """
    size = min(UPDATE, max(1, sum(map(batch_size, batches)) // ASIDE))
    small = [each for _, part in in_parts(model, batches) for each in _small(model, part, size)]
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
        self, model: nn.Module, original: nn.Module, pulled: Sequence[Lever], samples: Sequence[Batch], said: Outputs | None
    ) -> int:
        """Moves the levers; how many updates it took. Raises: TaskError when the original fails on a part."""
        lesson = _Wanted.of(original, samples, said)
        plain = to_float(model).requires_grad_(False)
        optimizer = torch.optim.Adam([lever.change for lever in pulled], lr=self.learning_rate)
        order = list(self._order(samples))
        with evaluating(plain), repeatable(plain), torch.enable_grad():
            for done, places in enumerate(counted(order, "tuning", len(order))):
                optimizer.param_groups[0]["lr"] = self.learning_rate * pace(done, len(order), WARM)
                optimizer.zero_grad()
                seen = sum(batch_size(samples[place]) for place in places)
                for place in places:
                    values = {lever.site.key: lever.now() for lever in pulled}
                    outputs = functional_call(plain, values, *arguments(samples[place]))
                    (lesson.loss(outputs, place) * (batch_size(samples[place]) / seen)).backward()
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
