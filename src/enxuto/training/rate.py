"""The rate: coded weights cost what they will take in the file, and steps grow and weights shrink where that is worth it.

Source: rate and distortion trained together as in Oktay et al. 2020, "Scalable model compression by entropy penalized
reparameterization"; grids learn as in Esser et al. 2020. Deviation: the price is that of the codes themselves, looked at anew
from time to time, straight through; no model is trained and none is sent. In the last part zeros stay zero, and the others train
without the price, which has made them smaller than they should be. Where bytes are given, the smallest codes beyond them are
left out from look to look, little by little as in Zhu, Gupta 2017, "To prune, or not to prune", and the price, to the end, only
brings the others near: alone it would overshoot, as steps and weights have momentum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from enxuto.coding import encode_array, encode_integers
from enxuto.errors import RangeError
from enxuto.functional.affine import largest_code
from enxuto.functional.rate import Prices, prices
from enxuto.layers.grids import CodedTensor
from enxuto.layers.rehearsal import Rehearsal
from enxuto.sites import Site, parameters, sites
from enxuto.sizes import format_bytes
from enxuto.training.objective import Moment

NEAR = 0.15  # of the bytes that were given
LOOKS = 120  # at the codes, in a training
APART = 5  # batches between two looks, at least, where no bytes are given
WEIGHED = 10  # looks, after which the codes are coded to see what they take beside their price
RAMP = 0.3  # of the training, in which the weight grows to what it is
SETTLED = 0.8  # of the training, from where on zeros stay
NAMES = 16  # bytes of a name, a shape and a place in the file, about
REACHED = 0.6  # of the training, when bytes that are given shall be there
FIRST_WEIGHT = 2e-6  # of the loss for a bit, where the bytes are given and the weight is sought
LEAST_WEIGHT, MOST_WEIGHT = 1e-8, 1e-3  # beyond it a training learns nothing but to be small
NOW, EVER = 1.0, 0.05  # how hard its logarithm answers that of the bytes: what is off now, and what has been all along
SPARE = 0.2  # of the bytes, in their logarithm, that the weight leaves for the cut
TRIES = 3  # at how many codes take the bytes that are wanted
STEEPNESS, FLATTEST, STEEPEST = 0.8, 0.4, 1.6  # of bytes over how many codes are not zero, in logarithms: at first, and limits


@dataclass
class Rate:
    """A term: `weight` of the loss for each bit of the codes, or as much as makes the file about `bytes` large.

    Raises: RangeError when no weight is on a grid whose codes have a price, or the bytes are fewer than all else takes.
    """

    student: nn.Module
    weight: float | None = None
    bytes: int | None = None
    priced: list[tuple[Site, Rehearsal]] = field(init=False)
    known: list[Prices] = field(init=False, default_factory=list)
    looked: int = -1
    since: int = APART  # batches
    free: list[Tensor | None] = field(init=False)  # what of each weight is no zero for ever
    put: list[Tensor | None] = field(init=False)  # what the last cut left of each
    began: float = field(init=False)  # the logarithm of the bytes at first
    off: float = 0.0  # what bytes have been off so far, in sum
    beside: float = 1.0  # what the codes take in a file, beside their price
    settled: bool = False
    ready: ClassVar[float] = SETTLED  # of the training, from where on a state is as small as it shall be

    def __post_init__(self) -> None:
        self.priced = [(site, leaf) for site in sites(self.student) if (leaf := _on_steps(site)) is not None]
        if not self.priced:
            raise RangeError(
                "rate= prices the codes of weights, and none is on a grid of steps; put Quantize(bits=8, per='tensor') before."
            )
        known = {id(leaf) for _, leaf in self.priced}
        beside = {id(leaf): (site, leaf) for site in parameters(self.student) if (leaf := _on_steps(site)) is not None}
        self.priced += [each for place, each in beside.items() if place not in known]  # biases and norms
        self.rest = 0 if self.bytes is None else _rest(self.student, {id(leaf) for _, leaf in self.priced})
        if self.bytes is not None and self.bytes <= self.rest:
            raise RangeError(
                f"rate={format_bytes(self.bytes)} is less than what is no code takes (biases, norms, parameters in float, names, "
                f"shapes), about {format_bytes(self.rest)}; ask for more, or code more of it before."
            )
        self.free = self.put = [leaf.keep for _, leaf in self.priced]
        self.now = FIRST_WEIGHT if self.weight is None else self.weight

    def __call__(self, moment: Moment) -> Tensor:
        """The bits of all codes times the weight, as gradients see them: what each costs beyond the code before it."""
        due = not self.settled and self.since >= APART if self.bytes is None else True
        if due and int(moment.progress * LOOKS) != self.looked:
            self.looked, self.since = int(moment.progress * LOOKS), 0
            self._look(moment.progress)
        self.since += 1
        total = torch.zeros(())
        if self.settled and self.bytes is None:
            return total
        for (site, leaf), price, free in zip(self.priced, self.known, self.free, strict=True):
            steps = _matrix(site, _between(leaf, free))
            seen = steps if free is leaf.keep else _matrix(site, _seen(leaf))
            total = total + price.pull(steps, seen.detach())
        return self.now * (min(1.0, moment.progress / RAMP) if self.bytes is None else 1.0) * total

    @property
    def coded_bytes(self) -> float:
        """What all codes took when they were last looked at."""
        return self.beside * sum(price.total for price in self.known) / 8

    def missed(self) -> str:
        """What became of bytes that were given, where the file will be off by more than NEAR; else empty.

        For the end of a training: looks at the codes as they are then.
        """
        self._priced()
        self._weigh()
        if self.bytes is None:
            return ""
        about = self.coded_bytes + self.rest
        if abs(about / self.bytes - 1) <= NEAR:
            return ""
        return f"the file comes to about {format_bytes(about)} in place of {format_bytes(self.bytes)}"

    def told(self) -> tuple[dict[str, float], str]:
        """What the codes came to and the loss that a bit was worth in the end; and what was missed."""
        missed = self.missed()
        return {"coded_bytes": self.coded_bytes, "loss_per_bit": self.now}, missed

    @torch.no_grad()
    def _priced(self) -> None:
        self.known = []
        for site, leaf in self.priced:
            assert leaf.grid is not None
            self.known.append(prices(_matrix(site, _seen(leaf)).round().abs(), largest_code(leaf.grid.bits)))

    @torch.no_grad()
    def _look(self, progress: float) -> None:
        if self.bytes is not None:
            self._let_go()
        self._priced()
        if self.bytes is not None:
            self._steer(progress)
        if progress >= SETTLED and not self.settled:
            self.settled = True
            self.free = [_seen(leaf).round() != 0 for _, leaf in self.priced]
            self._keep(self.free)

    def _let_go(self) -> None:
        """Takes the cut back, and what another step has left meanwhile for what is free."""
        each = zip(self.priced, self.free, self.put, strict=True)
        self.free = [
            free if leaf.keep is put else _both(leaf.keep, free if self.settled else None) for (_, leaf), free, put in each
        ]
        self._keep(self.free)

    def _keep(self, kept: Sequence[Tensor | None]) -> None:
        self.put = [*kept]
        for (_, leaf), keep in zip(self.priced, kept, strict=True):
            leaf.keep = keep
            leaf.grow = self.bytes is not None and not self.settled  # what was cut may come back

    def _weigh(self) -> None:
        """Compares what the codes take with their price: a coder has to learn how often each is."""
        total = sum(price.total for price in self.known) / 8
        self.beside = sum(_coded(leaf) for _, leaf in self.priced) / total if total else 1.0

    def _steer(self, progress: float) -> None:
        """Bytes fall evenly in their logarithm: the weight brings them near from above, and the cut to where they shall be."""
        assert self.bytes is not None
        now, wanted = math.log(max(1.0, self.coded_bytes)), math.log(self.bytes - self.rest)
        if not progress:
            self.began = now
        path = self.began + (wanted - self.began) * min(1.0, progress / REACHED)
        off = now - path - SPARE
        if self.now < MOST_WEIGHT or off < 0:
            self.off += off
        self.now = min(MOST_WEIGHT, max(LEAST_WEIGHT, FIRST_WEIGHT * math.exp(min(NOW * off + EVER * self.off, 50.0))))
        if now <= path:
            self.now = 0.0  # what is gone rarely comes back
        else:
            self._cut_(math.exp(path))
        if not self.looked % WEIGHED:
            self._weigh()

    def _cut_(self, allowed: float) -> None:
        """Leaves out the smallest weights, in steps, so that the codes take about what is allowed."""
        whole = [_seen(leaf).abs() for _, leaf in self.priced]
        sizes = torch.cat([steps[steps.round() > 0] for steps in whole]).sort(descending=True).values
        count, at, steep = len(sizes), self.coded_bytes, STEEPNESS
        for _ in range(TRIES):
            fewer = min(max(1, round(count * (allowed / at) ** (1 / steep))), len(sizes))
            if fewer == count:
                break
            self._keep([steps >= sizes[fewer - 1] for steps in whole])
            self._priced()
            steep = min(max(math.log(self.coded_bytes / at) / math.log(fewer / count), FLATTEST), STEEPEST)
            count, at = fewer, self.coded_bytes


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one & other


def _on_steps(site: Site) -> Rehearsal | None:
    """What trains there, if it is seen on a grid of steps."""
    leaf = site.tensor
    if not isinstance(leaf, Rehearsal) or leaf.grid is None or not leaf.leaf.ndim:
        return None
    return leaf if leaf.grid.steps(leaf.leaf.detach(), leaf.learned().detach()) is not None else None


def _matrix(site: Site, values: Tensor) -> Tensor:
    """The values as the matrix whose rows and columns make codes dear; those of a vector are one row."""
    return values[None] if values.ndim == 1 else site.matrix(values)


def _seen(leaf: Rehearsal) -> Tensor:
    """Where the leaf lies between codes. Shapes: as the weight."""
    return _between(leaf, leaf.keep)


def _between(leaf: Rehearsal, keep: Tensor | None) -> Tensor:
    """The same where `keep` stays, in place of its own."""
    assert leaf.grid is not None
    kept = leaf.leaf if keep is None else leaf.leaf * leaf.ones(keep)
    steps = leaf.grid.steps(kept.float(), leaf.learned())
    assert steps is not None
    return steps


def _rest(student: nn.Module, priced: set[int]) -> int:
    """About what of a file is no codes of weights: biases, norms, running statistics, names and shapes; a scale has none."""
    held = {id(site.tensor): site.tensor for site in parameters(student) if not isinstance(site.module, Rehearsal)}
    inside = {id(buffer) for leaf in student.modules() if isinstance(leaf, Rehearsal) for buffer in leaf.buffers()}
    buffers = [buffer for buffer in student.buffers() if buffer.is_floating_point() and buffer.ndim]
    others = [tensor for place, tensor in held.items() if place not in priced]
    named = len(held) + sum(id(buffer) not in inside for buffer in buffers)
    return NAMES * named + sum(map(_coded, [*others, *buffers]))


def _coded(tensor: Tensor | CodedTensor | Rehearsal) -> int:
    frozen = tensor.frozen() if isinstance(tensor, Rehearsal) else tensor
    if isinstance(frozen, CodedTensor):
        return len(encode_integers(frozen.symbol_bytes().cpu().numpy(), frozen.symbols))
    return len(encode_array(frozen.detach().float().cpu().numpy()))
