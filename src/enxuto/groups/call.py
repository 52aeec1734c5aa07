"""One operator call of a traced graph, its arguments bound to the names of the operator's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from enxuto.groups.ledger import FIXED, Ledger, Value, Weight, squash


@dataclass(frozen=True)
class Call:
    """What a rule sees: the operator, its arguments by name (labels in place of tensors), the shapes of its outputs."""

    op: OpOverload
    arguments: Mapping[str, object]
    shapes: tuple[tuple[int, ...], ...]
    node: str
    where: str
    ledger: Ledger
    sources: Mapping[str, str]  # the graph node behind each tensor argument

    def factors(self) -> tuple[str, str, Weight | None]:
        """The names of both factors of matmul, mm, bmm or addmm; and the second where it is a weight of an activation.

        Shapes: weight [in, out].
        """
        first, second = ("mat1", "mat2") if "mat1" in self.arguments else ("self", "other")
        if "mat2" in self.arguments and self.name in ("mm", "bmm"):
            first, second = "self", "mat2"
        right = self.arguments[second]
        if isinstance(right, Weight) and len(right.shape) == 2 and not isinstance(self.arguments[first], Weight):
            return first, second, right
        return first, second, None

    @property
    def name(self) -> str:
        """The operator without namespace and overload: "conv2d"."""
        return self.op._schema.name.split("::")[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shapes[0]

    def labels(self, name: str) -> Tensor:
        """The labels of a tensor argument; a parameter used as an activation gets its own."""
        return self.as_labels(self.arguments[name])

    def as_labels(self, value: object) -> Tensor:
        """Labels of whatever an argument holds."""
        if isinstance(value, Weight):
            return self.ledger.elements(value, self.where)
        assert isinstance(value, Tensor)
        return value

    def tensors(self) -> list[Tensor]:
        """The labels of all tensor arguments, those in lists too."""
        found: list[Tensor] = []

        def collect(value: object) -> None:
            if isinstance(value, Tensor | Weight):
                found.append(self.as_labels(value))
            elif isinstance(value, Sequence) and not isinstance(value, str):
                for item in value:
                    collect(item)

        for value in self.arguments.values():
            collect(value)
        return found

    def integer(self, name: str, default: int = 0) -> int:
        """An argument that is a whole number."""
        value = self.arguments.get(name, default)
        return value if isinstance(value, int) else default

    def freeze_all(self, why: str) -> Value:
        """Every channel that flows in stays; what comes out is fixed."""
        for labels in self.tensors():
            self.ledger.freeze(labels, why, self.where)
        return self.fixed()

    def fixed(self) -> Value:
        """Outputs that are no channels."""
        return self.result(*(fixed(shape) for shape in self.shapes))

    def result(self, *outputs: Tensor) -> Value:
        """Outputs as the operator returns them: one tensor, or several."""
        several = len(self.op._schema.returns) != 1 or str(self.op._schema.returns[0].type) == "List[Tensor]"
        return tuple(outputs) if several else outputs[0]

    def run(self, /, **replaced: object) -> Value:
        """What the operator itself makes of the labels."""
        values = {name: self._plain(value) for name, value in {**self.arguments, **replaced}.items()}
        schema = self.op._schema.arguments
        positional = [values[each.name] for each in schema if not each.kwarg_only]
        out = self.op(*positional, **{each.name: values[each.name] for each in schema if each.kwarg_only})
        return tuple(squash(each) for each in out) if isinstance(out, tuple | list) else squash(out)

    def _plain(self, value: object) -> object:
        if isinstance(value, Weight):
            return self.as_labels(value)
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        return value


def substituted(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    """An argument of a graph node with what stands for each node in its place."""
    return fx.node.map_arg(argument, lambda node: values[node])


def fixed(shape: Sequence[int]) -> Tensor:
    """Labels of something that may not be cut."""
    return torch.full((), FIXED, dtype=torch.int64).expand(tuple(shape))
