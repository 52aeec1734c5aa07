"""Prune: the least important weights become zero."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from enxuto.checks import check_flags
from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, RangeError, RecipeError, ShapeError
from enxuto.functional.keep import (
    check_block,
    check_sparsity,
    keep_largest,
    keep_largest_of,
    keep_pattern,
    keep_rows,
    parse_pattern,
    pooled,
    spread,
)
from enxuto.functional.scores import magnitude
from enxuto.records import Change, Record
from enxuto.refitting import Refitted
from enxuto.scoring import SCORES, Scored, in_training
from enxuto.select import Patterns
from enxuto.sites import Site, left_in_float, sites
from enxuto.surgery import borrowed
from enxuto.task import Task, check_call
from enxuto.training.tighten import Look

MOVEMENT = "movement"
SPARSITY = 0.5  # unless asked otherwise
SCOPES = ("global", "layer", "row")


@dataclass(frozen=True)
class Prune:
    """Zeros in place of the weights with the lowest scores; the zeros *are* the pattern, no mask remains.

    `sparsity` is the fraction of zeros over all selected weights together (scope="global"), in each (scope="layer") or in each
    of its rows, the weights of one output (scope="row"), exact to one weight. `pattern` ("2:4") keeps n of every m weights in a
    row instead, `block` ((8, 1): eight rows, one column) lets such blocks stay or go as a whole; layers that they do not divide
    are left, and named. Weights that are zero already count.
    `scores` are of the values ("magnitude", "lamp") or also of what the calibration batches say: "wanda" times the inputs that
    a weight meets, "taylor" times how far the outputs move with it. A weight that the batches say
    nothing of goes by magnitude, by itself. `refit=True` also sets what stays to those values that change the products with
    the calibration batches' inputs least. While training, scores that need data are magnitude, and training itself refits.
    "movement", in a training only, is how far each weight was pushed away from zero so far: for transfer, where values are those
    of another task; what gradients do not reach, as what is frozen, goes by magnitude, by itself.
    Raises: RangeError for a sparsity outside [0, 1), an unknown score or scope, a pattern beside a block or another sparsity.
    Source: Han et al. 2015; LAMP scores from Lee et al. 2021; "wanda" from Sun et al. 2023; "taylor" from Molchanov et al. 2019;
    "movement" from Sanh, Wolf, Rush 2020, "Movement pruning: adaptive sparsity by fine-tuning", section 4 (hard, no penalty);
    for `refit` Frantar, Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot".
    """

    sparsity: float = SPARSITY
    layers: Patterns = "*"
    scores: Literal["magnitude", "lamp", "wanda", "taylor", "movement"] = "lamp"
    scope: Literal["global", "layer", "row"] = "global"
    pattern: str | None = None
    block: tuple[int, int] | None = None
    refit: bool = False

    def __post_init__(self) -> None:
        check_flags(self)
        check_sparsity(self.sparsity)
        if self.scores not in (*SCORES, MOVEMENT):
            raise RangeError(f"scores={self.scores!r} is not known; use one of {', '.join(map(repr, (*SCORES, MOVEMENT)))}.")
        if self.scope not in SCOPES:
            raise RangeError(f"scope={self.scope!r} is not known; use one of {', '.join(map(repr, SCOPES))}.")
        if self.pattern is not None:
            self._check_pattern(*parse_pattern(self.pattern))
        if self.block is not None:
            check_block(self.block)
            object.__setattr__(self, "block", tuple(self.block))
        if self.pattern is not None and self.block is not None:
            raise RangeError(
                f"pattern={self.pattern!r} and block={self.block} are two patterns for one weight; give one of them."
            )

    def _check_pattern(self, kept: int, of: int) -> None:
        if self.sparsity not in (SPARSITY, 1 - kept / of):
            raise RangeError(
                f"pattern={self.pattern!r} makes {1 - kept / of:.3g} of the weights zero and sparsity={self.sparsity} asks for "
                "another part; leave one of them out."
            )

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The pruned copy.

        Raises: NothingChangedError when every weight that would go is zero already; ShapeError when no row takes the pattern.
        """
        check_call(self, model, task)
        if self.observes:
            raise RecipeError(
                f"scores={MOVEMENT!r} are gathered from gradients in a training, and Prune({self.sparsity}) by itself has none; "
                f"write Recover(during=[Prune({self.sparsity}, scores={MOVEMENT!r})]), or take 'lamp'."
            )
        start = time.monotonic()
        given, model = model, borrowed(model)
        chosen, left = self._chosen(model)
        scored = Scored(self.scores, given, task, chosen)
        refitted = Refitted(given, task, model, chosen) if self.refit else None

        def units(weight: Site) -> Tensor:
            made = self._units(weight, weight.read(), scored)
            if refitted is None:
                scored.forget(weight)
            return made

        changes, changed = [], False
        for weight, keep in zip(chosen, self._kept(chosen, units, self.sparsity, scored.missing), strict=True):
            values = weight.read()
            changed |= bool(((values != 0) & ~keep).any())
            again = self._again(weight, keep, scored)
            # a product with `keep` would leave zeros of either sign, one bit each
            weight.write_(values.where(keep, 0.0) if refitted is None else refitted(weight, keep, again))
            scored.forget(weight)
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
        skipped = (
            *left,
            *scored.left(),
            *(refitted.left() if refitted is not None else ()),
            *left_in_float(model, self.layers),
        )
        return separate_(model, given), Record(str(self), tuple(changes), skipped, figures, time.monotonic() - start)

    def rehearse_(self, model: nn.Module, strength: float) -> None:
        """Zeros the lowest scores of the float leaves, up to this strength; what is out waits, and comes back where others sink.

        It does not learn meanwhile: gradients of zeros, added to what a weight was before, say nothing of what it should be
        (bench/sparse_training.py).
        """
        chosen = self._chosen(model)[0]
        leaves = {weight.key: weight.rehearsal_() for weight in chosen}
        for leaf in leaves.values() if self.observes else ():
            if leaf.movement is None and strength:
                raise RecipeError(
                    f"scores={MOVEMENT!r} are not there before the first batch, and Prune({self.sparsity}) is to be whole then; "
                    "use prepare(..., gradual=True) and a Schedule, or tight=0.7 in Recover."
                )
            leaf.watched = True
            leaf.movement = torch.zeros_like(leaf.leaf.detach()) if leaf.movement is None else leaf.movement
        if self.pattern is not None and strength < 1:
            return
        score = magnitude if self.observes else in_training(self.scores)
        told = {key: leaf.movement for key, leaf in leaves.items() if self.observes and leaf.movement is not None}
        moved = {key: movement for key, movement in told.items() if bool(movement.any())}

        def scored(weight: Site, values: Tensor) -> Tensor:
            return moved[weight.key].clone() if weight.key in moved else score(values)

        def units(weight: Site) -> Tensor:
            return self._units(weight, leaves[weight.key].leaf.detach(), scored)

        kept = self._kept(chosen, units, self.sparsity * strength, alone=told.keys() - moved.keys())
        for leaf, keep in zip(leaves.values(), kept, strict=True):
            leaf.keep, leaf.grow = keep & (leaf.leaf.detach() != 0), False

    @property
    def observes(self) -> bool:
        """True where its scores are gathered from gradients."""
        return self.scores == MOVEMENT

    @torch.no_grad()
    def observe_(self, model: nn.Module, look: Look) -> None:
        """Gathers how far the gradients push each weight away from zero, those that are out as well."""
        for _, leaf, gradient in look.met(model, self.layers):
            if gradient is not None and leaf.movement is not None and bool(gradient.isfinite().all()):
                leaf.movement.addcmul_(leaf.leaf, gradient.to(leaf.leaf.dtype), value=-1)

    def _chosen(self, model: nn.Module) -> tuple[list[Site], list[Change]]:
        """The weights that are pruned, and those whose rows do not take the pattern, or whose sizes the block.

        Raises: ShapeError when none does.
        """
        chosen = sites(model, self.layers)
        high, wide = self.block or (1, 1 if self.pattern is None else parse_pattern(self.pattern)[1])
        sizes = {weight.key: weight.matrix().shape for weight in chosen}
        fits = {key: not (rows % high or width % wide) for key, (rows, width) in sizes.items()}
        asked = f"pattern={self.pattern!r}" if self.block is None else f"block={self.block}"
        takes = f"{asked} takes matrices of a multiple of {high} by {wide}"
        left = [
            Change(key, "left alone", f"{takes}, and this has {rows} by {width} weights")
            for key, (rows, width) in sizes.items()
            if not fits[key]
        ]
        if len(left) == len(chosen):
            named = ", ".join(f"'{key}' ({rows} by {width})" for key, (rows, width) in list(sizes.items())[:8])
            raise ShapeError(f"{takes} weights, and {named} are none; use sparsity=0.5.")
        return [weight for weight in chosen if fits[weight.key]], left

    def _kept(
        self, chosen: Sequence[Site], units: Callable[[Site], Tensor], sparsity: float, alone: Collection[str] = ()
    ) -> Iterator[Tensor]:
        """What of each weight stays, by the scores of its units; those that are alone are compared with themselves only."""
        together = [weight for weight in chosen if weight.key not in alone]
        if self.scope != "global" or self.pattern is not None:
            together = []
        found = iter(keep_largest_of([units(weight) for weight in together], sparsity))
        for weight in chosen:
            yield self._whole(weight, next(found) if weight in together else self._own(units(weight), sparsity))

    def _own(self, units: Tensor, sparsity: float, strength: float = 1.0) -> Tensor:
        """What of one weight stays."""
        if self.pattern is not None:
            return keep_pattern(units, self.pattern, strength)
        return (keep_rows if self.scope == "row" else keep_largest)(units, sparsity * strength)

    def _units(self, weight: Site, values: Tensor, scored: Callable[[Site, Tensor], Tensor]) -> Tensor:
        """A score for each weight or block. What is zero already goes first, so that a step never revives or double counts it.

        Shapes: as the weight's matrix, or its blocks.
        """
        scores = pooled(weight.matrix(scored(weight, values)), self.block)
        return scores.masked_fill_(pooled(weight.matrix(values.abs()), self.block) == 0, -torch.inf)

    def _whole(self, weight: Site, keep: Tensor) -> Tensor:
        """The other way: which weights stay. Shapes: as the weight."""
        return weight.shaped(spread(keep, self.block))

    def _again(self, weight: Site, keep: Tensor, scored: Scored) -> Callable[[Tensor, float], Tensor]:
        """Chooses as many once more, when values have changed; at less than full strength fewer go."""
        gone = 1 - int(keep.count_nonzero()) / max(1, keep.numel())
        sparsity = self.sparsity if self.scope == "row" else gone
        return lambda values, strength: self._whole(weight, self._own(self._units(weight, values, scored), sparsity, strength))

    def _why(self, values: Tensor, keep: Tensor) -> str:
        if not bool(keep.any()):
            instead = "; scope='layer' takes as much of each" if self.scope == "global" else ""
            return f"nothing of it stays ({self.scores} score, {self.scope}){instead}"
        if self.pattern is not None:
            return f"the largest of every {self.pattern} stay ({self.scores} score)"
        if self.refit or not bool(keep.any()) or bool(keep.all()):
            return f"by {self.scores} score, {self.scope}" + (", in rounds with refits" if self.refit else "")
        return f"the smallest that stays is {float(values[keep].abs().min()):.2e} ({self.scores} score, {self.scope})"
