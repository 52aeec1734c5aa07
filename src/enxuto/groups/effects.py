"""What factors of channels do to the tensors of a model: the ledger of channel numbers, with each effect written down."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

from enxuto.groups.call import Call, fixed
from enxuto.groups.ledger import Ledger, Weight

TIED = "its weight is read in several places that differ in what they read"


@dataclass(frozen=True, eq=False)
class Norm:
    """Whose variance a factor went into: the scale of a batch norm makes it good, with the epsilon beside the variance."""

    variance: str
    eps: float


@dataclass(frozen=True, eq=False)
class Effect:
    """A tensor of the model is multiplied, along one dimension, by the factors of these labels to a power.

    Shapes: labels [size of the dimension].
    """

    key: str
    dim: int
    labels: Tensor
    power: int
    node: str
    norm: Norm | None = None

    @property
    def role(self) -> tuple[int, int, bool]:
        """What has to be the same where a tensor is used again."""
        return self.dim, self.power, self.norm is not None


@dataclass
class Factors(Ledger):
    """The ledger with what factors do to the tensors of the model."""

    effects: list[Effect] = field(default_factory=list)
    otherwise: dict[str, str] = field(default_factory=dict)  # tensors that are read in another way, and where

    def elements(self, weight: Weight, where: str) -> Tensor:
        """A parameter that is used as an activation has no factors."""
        self.otherwise.setdefault(weight.key, where)
        return fixed(weight.shape)

    def axis(self, weight: Weight, dim: int, *, writer: str | None = None, reads: bool = False) -> Tensor:
        """Nor has one that is read in a way that no rule here knows."""
        self.otherwise.setdefault(weight.key, "")
        return fixed((weight.shape[dim],))

    def settle(self) -> list[Effect]:
        """The effects on each tensor, once; where it is used again, with the same factors, or none."""
        uses: dict[str, dict[str, list[Effect]]] = defaultdict(lambda: defaultdict(list))
        for effect in self.effects:
            uses[effect.key][effect.node].append(effect)
        for key, calls in uses.items():
            first, *others = calls.values()
            for other in others:
                same = [effect.role for effect in first] == [effect.role for effect in other]
                for one, two in zip(first, other, strict=True) if same else ():
                    self.unify(one.labels, two.labels, TIED, "")
                for effect in () if same else (*first, *other):
                    self.freeze(effect.labels, TIED, "")
            if key in self.otherwise:
                for effect in first:
                    self.freeze(effect.labels, f"'{key}' is read in another way too", self.otherwise[key])
        return [effect for calls in uses.values() for effect in next(iter(calls.values()))]


def touch(call: Call, weight: Weight, dim: int, line: Tensor, power: int, norm: Norm | None = None) -> None:
    """Writes down what the factors of `line` do along one dimension of a tensor."""
    assert isinstance(call.ledger, Factors)
    call.ledger.effects.append(Effect(weight.key, weight.axes[dim], line, power, call.node, norm))
