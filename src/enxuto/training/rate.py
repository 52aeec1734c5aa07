"""The rate: coded weights cost what they will take in the file, and steps grow and weights shrink where that is worth it.

Source: rate and distortion trained together as in Oktay et al. 2020, "Scalable model compression by entropy penalized
reparameterization"; grids learn as in Esser et al. 2020. Deviation: the price is that of the codes themselves, looked at anew
from time to time, straight through; no model is trained and none is sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
RAMP = 0.3  # of the training, in which the weight grows to what it is
SETTLED = 0.8  # of the training, from where on zeros stay
NAMES = 16  # bytes of a name, a shape and a place in the file, about
REACHED = 0.6  # of the training, when bytes that are given shall be there
FIRST_WEIGHT = 2e-6  # of the loss for a bit, where the bytes are given and the weight is sought
MOST_WEIGHT = 1e-3  # beyond it a training learns nothing but to be small
NOW, EVER = 2.0, 0.15  # how hard its logarithm answers that of the bytes: what is off now, and what has been all along


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
    off: float = 0.0  # what bytes have been off so far, in sum
    settled: bool = False

    def __post_init__(self) -> None:
        self.priced = [
            (site, leaf) for site in sites(self.student) if isinstance(leaf := site.tensor, Rehearsal) and _steps(leaf)
        ]
        if not self.priced:
            raise RangeError(
                "rate= prices the codes of weights, and none is on a grid of steps; put Quantize(bits=8, per='tensor') before."
            )
        self.rest = 0 if self.bytes is None else _rest(self.student, {id(leaf) for _, leaf in self.priced})
        if self.bytes is not None and self.bytes <= self.rest:
            raise RangeError(
                f"rate={format_bytes(self.bytes)} is less than what is no code takes (biases, norms, parameters in float, names, "
                f"shapes), about {format_bytes(self.rest)}; ask for more, or code more of it before."
            )
        self.now = FIRST_WEIGHT if self.weight is None else self.weight

    def __call__(self, moment: Moment) -> Tensor:
        """The bits of all codes times the weight, as gradients see them: what each costs beyond the code before it."""
        if int(moment.progress * LOOKS) != self.looked:
            self.looked = int(moment.progress * LOOKS)
            self._look(moment.progress)
        total = torch.zeros(())
        for (site, leaf), price in zip(self.priced, self.known, strict=True):
            steps = site.matrix(_seen(leaf)).abs()
            total = total + (price.slopes(steps.detach()) * steps).sum()
        return self.now * (min(1.0, moment.progress / RAMP) if self.bytes is None else 1.0) * total

    @property
    def coded_bytes(self) -> float:
        """What all codes took when they were last looked at."""
        return sum(price.total for price in self.known) / 8

    def missed(self) -> str:
        """What became of bytes that were given, where the file will be off by more than NEAR; else empty.

        For the end of a training: looks at the codes as they are then.
        """
        self._priced()
        if self.bytes is None:
            return ""
        about = self.coded_bytes + self.rest
        if abs(about / self.bytes - 1) <= NEAR:
            return ""
        return f"the file comes to about {format_bytes(about)} in place of {format_bytes(self.bytes)}"

    @torch.no_grad()
    def _priced(self) -> None:
        self.known = []
        for site, leaf in self.priced:
            codes = site.matrix(_seen(leaf)).round().abs()
            assert leaf.grid is not None
            self.known.append(prices(codes, largest_code(leaf.grid.bits)))

    @torch.no_grad()
    def _look(self, progress: float) -> None:
        if progress >= SETTLED and not self.settled:
            self.settled = True
            for _, leaf in self.priced:
                leaf.keep = _seen(leaf).round() != 0
        self._priced()
        if self.bytes is not None:
            self._steer(progress)

    def _steer(self, progress: float) -> None:
        """Moves the weight so that bytes fall to what is wanted, evenly in their logarithm, while zeros can still change."""
        assert self.bytes is not None
        wanted = math.log(self.bytes - self.rest)
        if not progress:
            self.began = math.log(self.coded_bytes)
        off = math.log(self.coded_bytes) - (self.began + (wanted - self.began) * min(1.0, progress / REACHED))
        if self.now < MOST_WEIGHT or off < 0:
            self.off += off
        self.now = min(MOST_WEIGHT, FIRST_WEIGHT * math.exp(min(NOW * off + EVER * self.off, 50.0)))


def _steps(leaf: Rehearsal) -> bool:
    return leaf.grid is not None and leaf.grid.steps(leaf.leaf.detach(), leaf.learned().detach()) is not None


def _seen(leaf: Rehearsal) -> Tensor:
    """Where the leaf lies between codes. Shapes: as the weight."""
    assert leaf.grid is not None
    steps = leaf.grid.steps(leaf.kept().float(), leaf.learned())
    assert steps is not None
    return steps


def _rest(student: nn.Module, priced: set[int]) -> int:
    """About what of a file is no codes of weights: biases, norms, running statistics, names and shapes."""
    held = {id(site.tensor): site.tensor for site in parameters(student) if not isinstance(site.module, Rehearsal)}
    buffers = [buffer for buffer in student.buffers() if buffer.is_floating_point() and buffer.ndim]
    others = [tensor for place, tensor in held.items() if place not in priced]
    return NAMES * (len(held) + len(buffers)) + sum(map(_coded, [*others, *buffers]))


def _coded(tensor: Tensor | CodedTensor | Rehearsal) -> int:
    frozen = tensor.frozen() if isinstance(tensor, Rehearsal) else tensor
    if isinstance(frozen, CodedTensor):
        return len(encode_integers(frozen.symbol_bytes().cpu().numpy(), frozen.symbols))
    return len(encode_array(frozen.detach().float().cpu().numpy()))
