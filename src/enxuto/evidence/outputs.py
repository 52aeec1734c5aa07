"""How far a network's outputs are from those of the one it was made from, on the calibration batches; no labels."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calls import attempt, evaluating, repeatable
from enxuto.functional.likeness import Spread, log_probabilities, probabilities, same_classes, same_entries
from enxuto.outputs import Outputs, output_tensors, said_of


class Answers:
    """What a model answers to the calibration batches; `outputs` says as what they are judged, as a task does.

    Raises: TaskError when the model fails on a batch.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Batch], outputs: Outputs | None = None) -> None:
        self.batches = batches
        given = _answers(model, batches)
        said = said_of({name: tensors[0] for name, tensors in given.items()}, outputs) if outputs is not None else {}
        self.given = {name: tensors for name, tensors in given.items() if name in said or outputs is None}
        self.spreads = {name: Spread.of(tensors) for name, tensors in self.given.items() if not _is_whole(tensors)}
        self.classes = [name for name in self.spreads if said.get(name) == "classes" or _shows_classes(self.given[name])]

    def moved(self, model: nn.Module) -> float:
        """How far the outputs of another model are from these: the root of the mean squared difference over how far they spread
        over the samples, of the output that moved farthest. 0 is nowhere, 1 as far as the mean of all answers would be; of whole
        numbers the share that changed. Infinite where shapes differ.
        """
        return self.compared(model)[0]

    def compared(self, model: nn.Module) -> tuple[float, float | None]:
        """The same, and which fraction of the classes that these outputs named it names too; None where none holds classes."""
        found = _answers(model, self.batches)
        moved = max((self._moved(name, found.get(name, [])) for name in self.given), default=0.0)
        if not self.classes or math.isinf(moved):
            return moved, 0.0 if self.classes else None
        return moved, min(self._agreement(name, found[name]) for name in self.classes)

    def _agreement(self, name: str, found: list[Tensor]) -> float:
        shares = [float(same_classes(*pair, 1)) * len(pair[0]) for pair in zip(self.given[name], found, strict=True)]
        return sum(shares) / sum(map(len, found))

    def _moved(self, name: str, found: list[Tensor]) -> float:
        given = self.given[name]
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in found]:
            return math.inf
        total = 0.0
        for before, after in zip(given, found, strict=True):
            if name in self.spreads:
                total += float(self.spreads[name].errors(before.double(), after.double()).nan_to_num(nan=math.inf).sum())
            else:
                total += float(before.numel() - same_entries(before, after, 1) * before.numel())
        mean = total / max(1, sum(map(Tensor.numel, given)))
        return math.sqrt(mean) if name in self.spreads else mean


def _answers(model: nn.Module, batches: Iterable[Batch]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    with evaluating(model), repeatable(model):
        for number, batch in enumerate(batches, 1):
            for name, tensor in output_tensors(attempt(model, batch, f"calibration batch {number}")).items():
                found.setdefault(name, []).append(tensor)
    return found


def _is_whole(tensors: list[Tensor]) -> bool:
    return not (tensors[0].is_floating_point() or tensors[0].is_complex())


def _shows_classes(tensors: list[Tensor]) -> bool:
    """True where rows are probabilities, or their logarithms."""
    return all(map(probabilities, tensors)) or all(map(log_probabilities, tensors))
