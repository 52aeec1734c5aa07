"""Prune: the least important weights become zero."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, RangeError, ShapeError
from enxuto.functional.keep import check_sparsity, keep_largest, keep_largest_of, keep_pattern, parse_pattern
from enxuto.functional.scores import lamp, magnitude
from enxuto.select import Patterns
from enxuto.surgery import Weight, borrowed, leaves_, left_in_float, weights
from enxuto.task import Change, Record, Task

SCORES = {"magnitude": magnitude, "lamp": lamp}


@dataclass(frozen=True)
class Prune:
    """Zeros in place of the weights with the lowest scores; the zeros *are* the pattern, no mask remains.

    `sparsity` is the fraction of zeros over all selected weights together (scope="global") or in each (scope="layer"),
    exact to one weight. `pattern` ("2:4") keeps n of every m weights in a row instead, in the layers whose rows m divides; the
    record names the others. Weights that are zero already count.
    Raises: RangeError for a sparsity outside [0, 1), an unknown score or scope.
    Source: Han et al. 2015; LAMP scores from Lee et al. 2021.
    """

    sparsity: float = 0.5
    layers: Patterns = "*"
    scores: Literal["magnitude", "lamp"] = "lamp"
    scope: Literal["global", "layer"] = "global"
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.scores not in tuple(SCORES):
            raise RangeError(f"scores={self.scores!r} is not known; use one of {', '.join(map(repr, SCORES))}.")
        if self.scope not in ("global", "layer"):
            raise RangeError(f"scope={self.scope!r} is not known; use 'global' or 'layer'.")
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The pruned copy.

        Raises: NothingChangedError when every weight that would go is zero already; ShapeError when no row takes the pattern.
        """
        start = time.monotonic()
        given, model = model, borrowed(model)
        chosen, left = self._chosen(model)
        changes, changed = [], False
        for weight, keep in zip(chosen, self.keep([weight.read() for weight in chosen], self.sparsity), strict=True):
            values = weight.read()
            changed |= bool(((values != 0) & ~keep).any())
            weight.write_(torch.where(keep, values, 0.0))  # a product would leave zeros of either sign, one bit each
            changes.append(
                Change(weight.key, f"{1 - int(keep.count_nonzero()) / max(1, keep.numel()):.1%} zeros", self._why(values, keep))
            )
        if not changed:
            raise NothingChangedError(
                f"Prune(sparsity={self.sparsity}) would change nothing in {len(chosen)} weights: as many are zero already; "
                "ask for a higher sparsity."
            )
        total = sum(weight.read().numel() for weight in chosen)
        zeros = total - sum(int(weight.read().count_nonzero()) for weight in chosen)
        figures = {"sparsity": zeros / total, "weights": float(total)}
        skipped = (*left, *left_in_float(model, self.layers))
        return separate_(model, given), Record(str(self), tuple(changes), skipped, figures, time.monotonic() - start)

    def rehearse_(self, model: nn.Module, strength: float) -> None:
        """Zeros the lowest scores of the float leaves, up to this strength; what is out still learns and may come back."""
        leaves = leaves_(model, self._chosen(model)[0])
        values = [leaf.leaf.detach() for leaf in leaves]
        if self.pattern is not None and strength < 1:
            return
        for leaf, keep in zip(leaves, self.keep(values, self.sparsity * strength), strict=True):
            leaf.keep, leaf.grow = keep, True

    def _chosen(self, model: nn.Module) -> tuple[list[Weight], list[Change]]:
        """The weights that are pruned, and those whose rows do not take the pattern.

        Raises: ShapeError when none does.
        """
        chosen = weights(model, self.layers)
        if self.pattern is None:
            return chosen, []
        size = parse_pattern(self.pattern)[1]
        lengths = {weight.key: weight.read()[0].numel() for weight in chosen}
        left = [
            Change(
                key, "left alone", f"pattern={self.pattern!r} takes rows of a multiple of {size}; its rows have {length} weights"
            )
            for key, length in lengths.items()
            if length % size
        ]
        if len(left) == len(chosen):
            named = ", ".join(f"'{key}' ({length})" for key, length in list(lengths.items())[:8])
            raise ShapeError(
                f"pattern={self.pattern!r} needs rows of a multiple of {size} weights, and {named} are none; use sparsity=0.5."
            )
        return [weight for weight in chosen if lengths[weight.key] % size == 0], left

    def keep(self, values: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Which weights stay, one bool tensor for each."""
        scored = [SCORES[self.scores](value) for value in values]
        if self.pattern is not None:
            return [keep_pattern(scores, self.pattern) for scores in scored]
        if self.scope == "layer":
            return [keep_largest(scores, sparsity) for scores in scored]
        # zeros go first whatever their score, so that a step never revives or double counts them
        for value, scores in zip(values, scored, strict=True):
            scores.masked_fill_(value == 0, -1.0)
        return keep_largest_of(scored, sparsity)

    def _why(self, values: Tensor, keep: Tensor) -> str:
        if self.pattern is not None:
            return f"the largest of every {self.pattern} stay"
        if not bool(keep.any()) or bool(keep.all()):
            return f"by {self.scores} score, {self.scope}"
        return f"the smallest that stays is {float(values[keep].abs().min()):.2e} ({self.scores} score, {self.scope})"
