"""Tuning: a few numbers of a network move so that its outputs come back to the original's, and its weights keep their shape.

Biases, norms and other vectors take a change each, weights a factor. A unit of a change is what would move the outputs, to first
order, by as much as they spread, and at most as much as the layer's own outputs are large, so that one learning rate suits
numbers of any scale. What hardly moves the outputs stays: gradients of a key's bias, or of one before an instance norm, are
rounding.
Source: Frankle, Schwab, Morcos 2021, "Training BatchNorm and only BatchNorm", for how much these numbers alone can do; Li et al.
2024, "Norm tweaking", for norms after quantization. Deviation: the outputs are compared, not each layer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from enxuto.batches import Batch, arguments, batch_size, leaves, parts
from enxuto.calls import attempt, differentiating, evaluating, repeatable
from enxuto.errors import NothingChangedError, TaskError
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
from enxuto.training.schedules import cosine

UPDATE = 64  # samples that an update sees
WARM = 5  # the part of all updates that warms up is one in so many
ASIDE = 8  # one part in so many is kept aside, to judge by
FAINT = 1e-4  # of their spread, by a change as large as the layer's outputs: rounding of float32 alone comes to 1e-7
HARDLY = "outputs hardly move with it"
LARGEST = math.log(4)  # of the logarithm of a factor: a weight that wants another is no longer the same
HARM = (1.1, 0.05)  # times as far off as before, or of their spread, whichever is more: what one of several outputs may become


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

    def bound_(self) -> None:
        """Keeps a factor within what it may be."""
        if self.unit is None:
            self.change.clamp_(-LARGEST, LARGEST)


def levers(
    model: nn.Module, plain: nn.Module, layers: Patterns, batch: Batch, seed: int, outputs: Outputs | None
) -> tuple[list[Lever], dict[str, str]]:
    """Those of the layers that match, over the values of `plain`, which is the model in float; and of vectors that the outputs
    do not or hardly move with, why, as a batch tells it.

    Raises: TaskError when the model fails on it.
    """
    weights = list(filter(_real, sites(model)))
    known = {id(weight.tensor) for weight in sites(model)}
    first = [places[0] for places in together(parameters(model)).values()]
    vectors = [site for site in first if len(site.shape) <= 1 and id(site.tensor) not in known and _real(site)]
    weights, vectors = ([site for site in each if matches(site.path or site.name, layers)] for each in (weights, vectors))
    moved, missing = moved_by(plain, [batch], vectors, seed, outputs) if vectors else ({}, {})
    whole = {site.key: moved[site.key] * math.sqrt(math.prod(site.shape)) for site in vectors if site.key in moved}
    sizes = _sizes(plain, batch, [site for site in vectors if site.key in moved])
    missing |= {key: HARDLY for key, size in sizes.items() if whole[key] * size < FAINT}
    vectors = [site for site in vectors if site.key not in missing]
    share = 1 / math.sqrt(max(1, len(vectors) + len(weights)))  # of what all of them together move the outputs
    units = {site.key: min(share / whole[site.key], sizes[site.key]) for site in vectors}
    starts = {site.key: plain.get_parameter(site.key).detach() for site in (*vectors, *weights)}
    return [Lever.of(site, starts[site.key], units.get(site.key)) for site in (*vectors, *weights)], missing


def _real(site: Site) -> bool:
    return bool(site.read().is_floating_point()) and math.prod(site.shape) > 0


def _sizes(plain: nn.Module, batch: Batch, vectors: Sequence[Site]) -> dict[str, float]:
    """How large the values of each vector are, or the outputs of its layer where those are larger; 1 where all are zero."""
    found = {site.key: _rms(site.read()) for site in vectors}

    def gave(key: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[key] = max([found[key], *(_rms(each) for each in leaves(output) if each.is_floating_point())])

        return see

    hooks = [plain.get_submodule(site.path).register_forward_hook(gave(site.key)) for site in vectors]
    try:
        with evaluating(plain):
            attempt(plain, batch, "calibration batch 1")
    finally:
        for hook in hooks:
            hook.remove()
    return {key: size or 1.0 for key, size in found.items()}


def _rms(values: Tensor) -> float:
    finite = values[values.isfinite()].double()
    return math.sqrt(float(finite.square().mean())) if finite.numel() else 0.0


Part = tuple[str, Batch]
"""Some samples, and what the batch is called that they are from."""


def halves(model: nn.Module, batches: Sequence[Batch]) -> tuple[list[Part], list[Part]]:
    """The samples in parts to tune by, and in parts to judge by: each eighth, and one at least.

    Raises: NothingChangedError when they cannot be parted: a single one, or one batch in a network that takes no other number.
    """
    plain, size = to_float(model), min(UPDATE, max(1, sum(map(batch_size, batches)) // ASIDE))
    small = [(place, each) for place, part in in_parts(plain, batches) for each in _small(plain, part, size)]
    if len(small) < 2:
        raise NothingChangedError(
            f"nothing can be tuned: calibration holds {sum(map(batch_size, batches))} samples in one batch that is not parted, "
            "because it is so small or the network takes no other number, and some are to be tuned by and others judged by; give "
            "more batches, better hundreds of samples."
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

    def run_(self, plain: nn.Module, pulled: Sequence[Lever], wanted: Wanted, count: int) -> int:
        """Moves the levers of a model in float by the first parts of what is wanted; how many updates it took.

        Raises: GradientError when no gradients go through the model.
        """
        if not pulled:
            return 0
        samples, prefix = [batch for _, batch in wanted.parts[:count]], ""
        if isinstance(plain, nn.DataParallel):
            plain, prefix = plain.module, "module."
        optimizer = torch.optim.Adam([lever.change for lever in pulled], lr=self.learning_rate)
        order = list(self._order(samples))
        with evaluating(plain), repeatable(plain), torch.enable_grad(), differentiating("the calibration batches"):
            for done, places in enumerate(counted(order, "tuning", len(order))):
                optimizer.param_groups[0]["lr"] = self.learning_rate * cosine(done, len(order), WARM)
                optimizer.zero_grad()
                seen = sum(batch_size(samples[place]) for place in places)
                values = {lever.site.key.removeprefix(prefix): lever.held() for lever in pulled}
                for place in places:
                    outputs = functional_call(plain, values, *arguments(samples[place]))
                    loss = wanted.loss(outputs, place) * (batch_size(samples[place]) / seen)
                    if loss.requires_grad:  # not where all of it runs under no_grad
                        loss.backward()
                    del outputs, loss
                del values  # before the next take memory
                optimizer.step()
                for lever in pulled:
                    lever.bound_()
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
class Wanted:
    """What the original answers to each part, and how far each output spreads over all."""

    parts: Sequence[Part]
    answers: Sequence[Mapping[str, Tensor]]
    spreads: Mapping[str, Spread]

    @staticmethod
    def of(original: nn.Module, parts: Sequence[Part], said: Outputs | None) -> Wanted:
        """Of the original's answers. Raises: TaskError when it fails on a part or answers NaN; NothingChangedError when none of
        its outputs that count holds real numbers."""
        answers = _answers(original, parts)
        names = [name for name in said_of(answers[0], said) if answers[0][name].is_floating_point()]
        if not names:
            kinds = ", ".join(f"'{name}' is {str(each.dtype).removeprefix('torch.')}" for name, each in answers[0].items())
            raise NothingChangedError(
                f"nothing can be tuned: no output that counts holds real numbers ({kinds}), and outputs are what tells how; "
                "return the scores that they are made from."
            )
        answers = [{name: each[name] for name in names if name in each} for each in answers]
        for (place, _), each in zip(parts, answers, strict=True):
            if any(bool(tensor.isnan().any()) for tensor in each.values()):
                raise TaskError(f"the model gives NaN on {place}; check weights and inputs, or leave it out.")
        return Wanted(parts, answers, {name: Spread.of([each[name] for each in answers if name in each]) for name in names})

    def off(self, model: nn.Module, start: int) -> dict[str, float]:
        """How far the outputs of a model are from these on the parts from `start` on: the root of the mean squared difference
        over how far each spreads over all parts; infinite where it is not a number."""
        found: dict[str, list[Tensor]] = {}
        for answer, original in zip(_answers(model, self.parts[start:]), self.answers[start:], strict=True):
            for name, tensor in original.items():
                given = answer.get(name, tensor.new_zeros(()))
                same = given.shape == tensor.shape
                errors = self.spreads[name].errors(tensor.double(), given.double()) if same else tensor.new_tensor(math.inf)
                found.setdefault(name, []).append(errors.double().nan_to_num(nan=math.inf).flatten())
        return {name: math.sqrt(float(torch.cat(several).mean())) for name, several in found.items()}

    def loss(self, outputs: Any, place: int) -> Tensor:
        """How far outputs are from the original's, squared, in units of their spread: the mean over all outputs."""
        given, original = output_tensors(outputs), self.answers[place]
        return torch.stack([same_values(given[name], original[name], self.spreads[name]) for name in original]).mean()


def _answers(model: nn.Module, parts: Sequence[Part]) -> list[Mapping[str, Tensor]]:
    with evaluating(model), repeatable(model):
        return [output_tensors(attempt(model, batch, place)) for place, batch in parts]


def together_off(off: Mapping[str, float]) -> float:
    """Of all outputs, as `Wanted.loss` counts them: the root of the mean square."""
    return math.sqrt(sum(each**2 for each in off.values()) / max(1, len(off)))


def harmed(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """The outputs that are farther off than before, and than HARM allows."""
    return [name for name, each in after.items() if not each <= max(HARM[0] * before[name], HARM[1])]
