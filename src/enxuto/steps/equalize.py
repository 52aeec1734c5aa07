"""Equalize: factors move between the channels of layers, so that 8 or 4 bits hold them better; outputs stay what they were."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.checks import named, whole, within
from enxuto.copies import separate_
from enxuto.encode import code_weights_, input_ranges, round_inputs_
from enxuto.equalizing import PLANS, Scaled, Sweep, swept_
from enxuto.errors import NothingChangedError, RangeError
from enxuto.evidence.outputs import Answers
from enxuto.evidence.rows import seen_rows
from enxuto.functional.equalize import smoothed
from enxuto.functional.likeness import ROUNDING
from enxuto.groups.links import LEFT, Link, find_links, scale_
from enxuto.groups.rehearse import faulty
from enxuto.layers.activations import check_activations
from enxuto.layers.affine import Affine, Per
from enxuto.layers.coded import Coded
from enxuto.outputs import Outputs
from enxuto.records import Change, Record, reasons
from enxuto.select import Patterns, matches, select
from enxuto.sites import held, sites
from enxuto.surgery import borrowed
from enxuto.task import Task, check_call

By = Literal["best", "weights", "inputs"]
TRIALS = 24  # networks that are rounded to find the links that help
HALF = 0.02  # of the outputs' spread, by which rounding may move them in half precision


@dataclass(frozen=True)
class Equalize:
    """Channels multiplied where they are written and divided where they are read: the same outputs, smaller losses when rounded.

    Put it before `Quantize` and say what that will do: `bits` and `per` of the weights, and `activations=None` where inputs stay
    float. It finds channels by data flow: from Linear, convolutions, embeddings and the scales of norms, through what passes
    factors on (ReLU, LeakyReLU, pools, sums, the values of attention; each is tried), to all layers that read them. A batch norm
    answers for factors of the layer before it.
    `by="weights"` gives rows and columns of a channel equal ranges, from the weights alone. `by="inputs"` weighs columns against
    the inputs that they meet: `alpha` of the inputs' range goes into the weights; without it, and with "best", each link of
    layers gets what costs its products least. Links that make the rounded outputs worse on the calibration batches are taken
    back; nothing is left that does not help there. Codes cannot be moved: do this before.
    Raises: RangeError for bits outside 2..8 or arguments that contradict.
    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.1; Xiao et al.
    2023, "SmoothQuant"; Lin et al. 2024, "AWQ". Deviation: batch norms need not be folded, and ReLU6 stays ReLU6.
    """

    by: By = "best"
    layers: Patterns = "*"
    bits: int = 8
    per: Per = "channel"
    activations: int | None = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise RangeError(f"by={self.by!r} is not known; use one of {', '.join(map(repr, get_args(By)))}.")
        if not whole(self.bits, 2, 8):
            raise RangeError(f"{named('bits', self.bits)} is no whole number in 2..8; say what Quantize will be told.")
        self.grid()
        check_activations(self.activations)
        if self.alpha is not None and not within(self.alpha, "[0, 1]"):
            raise RangeError(f"{named('alpha', self.alpha)} is the part of the inputs' range that moves, in [0, 1]; use 0.5.")
        if self.alpha is not None and self.by != "inputs":
            raise RangeError(f"alpha={self.alpha} is for by='inputs', not by={self.by!r}; leave it out, or say by='inputs'.")

    def grid(self) -> Affine:
        """The grid that weights will lie on."""
        return Affine(self.bits, self.per)

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The equalized copy.

        Raises: LayerError when `layers` matches nothing, NothingChangedError when no factor helps, TaskError when the model fails
        on a batch.
        """
        check_call(self, model, task)
        start = time.monotonic()
        select(model, self.layers, lambda module: True)
        batches = list(task.calibration)  # a loader may shuffle, and all that is compared is compared on the same
        links, left = find_links(model, task.sample)
        links, left = self._free(model, links, left)
        judge = _Judge(model, batches, self, task.outputs)
        plans = [judge.exact(found) for found in self._plans(model, links, batches, task.seed)]
        found, wrong = min(plans, key=lambda plan: judge.error(plan[0])) if links else ([], [])
        helpful = judge.helpful(found)
        left += [*wrong, *(each.left() for each in found if each not in helpful)]
        if not helpful:
            why = reasons(left) or ("channels are as even as factors make them" if links else "no layers are linked")
            raise NothingChangedError(
                f"{self} would change nothing: no factors make {self.bits} bits lose less ({why}); leave the step out."
            )
        figures = {"rounded_error_before": judge.before, "rounded_error": judge.least}
        made = separate_(_scaled(model, helpful), model)
        return made, Record(str(self), tuple(map(_Found.change, helpful)), tuple(left), figures, time.monotonic() - start)

    def _free(self, model: nn.Module, links: Iterable[Link], left: list[Change]) -> tuple[list[Link], list[Change]]:
        """The links of chosen layers, all of whose tensors are plain."""
        kept = []
        for link in links:
            coded = [path for path in link.paths if isinstance(model.get_submodule(path), Coded)]
            if coded:
                left.append(Change(coded[0], LEFT, "it is coded already; equalize before that"))
            elif all(matches(path, self.layers) for path in link.paths):
                kept.append(link)
        return kept, [change for change in left if matches(change.path, self.layers)]

    def _plans(self, model: nn.Module, links: Sequence[Link], batches: Sequence[Batch], seed: int) -> Iterator[list[_Found]]:
        """What links would be given by each way to choose it."""
        keys = sorted({part.key for link in links for part in link.parts if held(model, part.key).ndim > 1})
        rows = seen_rows(model, batches, keys, seed) if links and self.by != "weights" else {}
        for plan in PLANS[self.by] if self.alpha is None else ([Sweep((smoothed(self.alpha),), 1, search=False)],):
            scaled = Scaled(separate_(borrowed(model), model), rows, self.grid(), self.activations)
            found: dict[Link, _Found] = {}
            for sweep in plan:
                for link, factors, by in swept_(scaled, links, sweep):
                    before = found[link].factors if link in found else 1.0
                    found[link] = _Found(link, before * factors, by)
            yield [found[link] for link in links if link in found]


@dataclass(frozen=True, eq=False)
class _Found:
    """The factors of a link, and by what they were chosen. Shapes: factors float64 [units]."""

    link: Link
    factors: Tensor
    by: str

    def change(self) -> Change:
        """What was done, in words."""
        low, high = float(self.factors.min()), float(self.factors.max())
        readers = ", ".join(f"'{path}'" for path in self.link.readers[:3]) + (", ..." if len(self.link.readers) > 3 else "")
        return Change(self.link.writers[0], f"channels times {low:.3g} to {high:.3g}, divided out in {readers}", self.by)

    def left(self) -> Change:
        """The same where it did not help."""
        return Change(self.link.writers[0], LEFT, "rounded outputs are no better with it on the calibration batches")


class _Judge:
    """How far rounding moves the outputs, with some links equalized; `before` without any, `least` the best that was seen."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], step: Equalize, outputs: Outputs | None) -> None:
        self.model, self.batches, self.step = model, batches, step
        self.answers = Answers(model, batches, outputs)
        self.trials: dict[frozenset[_Found], float] = {}
        self.before = self.least = self.error([])

    def exact(self, found: Sequence[_Found]) -> tuple[list[_Found], list[Change]]:
        """Those that leave the outputs as they are before anything is rounded, and the others with the reason."""
        if not found:
            return [], []
        wrong = faulty(len(found), lambda some: self._moved([found[index] for index in some]))
        left = [Change(found[index].link.writers[0], LEFT, why) for index, why in sorted(wrong.items())]
        return [each for index, each in enumerate(found) if index not in wrong], left

    def _moved(self, found: Sequence[_Found]) -> str:
        half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in self.model.parameters())
        moved = self.answers.moved(_scaled(self.model, found))
        return (
            "" if moved <= (HALF if half else ROUNDING) else f"with these factors the outputs move by {moved:.2g} of their spread"
        )

    def helpful(self, found: Sequence[_Found], beside: Sequence[_Found] = ()) -> list[_Found]:
        """Those that make it less beside others: all, or what is left of each half."""
        if not found or len(self.trials) >= TRIALS:
            return []
        error = self.error([*beside, *found])
        if error < self.least:
            self.least = error
            return list(found)
        if len(found) == 1:
            return []
        first = self.helpful(found[: len(found) // 2], beside)
        return [*first, *self.helpful(found[len(found) // 2 :], [*beside, *first])]

    def error(self, found: Sequence[_Found]) -> float:
        """How far the outputs move when the network is rounded with these factors."""
        if frozenset(found) not in self.trials:
            self.trials[frozenset(found)] = self.answers.moved(self._rounded(found))
        return self.trials[frozenset(found)]

    def _rounded(self, found: Sequence[_Found]) -> nn.Module:
        made = _scaled(self.model, found)
        ranges = input_ranges(made, self.batches, "*", "best") if self.step.activations else {}
        plain = [weight for weight in sites(made) if isinstance(weight.tensor, Tensor)]
        code_weights_(plain, self.step.grid())
        round_inputs_(made, ranges)
        return made


def _scaled(model: nn.Module, found: Iterable[_Found]) -> nn.Module:
    """A copy, of which what is not multiplied is the model's."""
    made = borrowed(model)
    for each in found:
        scale_(made, each.link, each.factors)
    return made
