"""Factorize: a layer becomes thin ones in a row where that is smaller."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from enxuto.checks import named, whole, within
from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, RangeError
from enxuto.evidence.outputs import Answers
from enxuto.forms import WHOLE, Form, Ranks, fits, form_of_rank
from enxuto.functional.allocate import cheapest_steps
from enxuto.layers.coded import weight_names
from enxuto.ranks import Least, Offer, SquaresOf, check_ranks, offers, shapes
from enxuto.records import Change, Record, reasons
from enxuto.select import Patterns
from enxuto.sites import Site
from enxuto.surgery import borrowed
from enxuto.task import Task, check_call
from enxuto.thin import thin_, thinnable, thinned

STAY = 0.05  # of what outputs spread over the samples: what a network may lose unasked, at most 0.28 points in bench/ranks.py
FAR = 0.1  # a network whose outputs moved farther may have lost any number of points
NEAR = 0.8  # of STAY: near enough to end the trials
TRIALS = 6  # of how thin a network may get
REMEDY = "raise rank, energy, size or macs, or train after it"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Factorize:
    """Linear and convolution layers as thin ones in a row; coded layers give coded thin layers.

    How thin: `rank` channels between; or the least that keeps the fraction `energy` of each layer; or the fraction `size` of the
    weights of the selected layers, or `macs` of their multiply-accumulates, shared out so that least is lost. Without any of
    these, as thin as leaves the outputs on the calibration batches within a twentieth of what they spread. What was asked for may
    move them further; beyond a tenth the record and the log warn: such a network wants training.
    `least` says which error is least: that of the layers' "outputs" on the calibration batches, or that of their "weights".
    `form` is "svd" (two layers), for convolutions also "tucker" (1x1, k x k, 1x1) and "cp" (1x1, k x k of each channel alone,
    1x1), for Linear layers "kronecker" (a sum of Kronecker products), or "auto": what loses least at as many weights, with
    "kronecker" for at most 16 outputs; with `rank`, "svd". Layers that the form does not fit get two thin ones;
    those that would grow, in weights or multiply-accumulates, are left alone and named.
    Raises: RangeError for more than one of these goals, or one out of range.
    Source: Denton et al. 2014, "Exploiting linear structure within convolutional networks"; Zhang et al. 2015, "Accelerating very
    deep convolutional networks for classification and detection"; Kim et al. 2016, "Compression of deep convolutional neural
    networks for fast and low power mobile applications"; Lebedev et al. 2015, "Speeding-up convolutional neural networks using
    fine-tuned CP-decomposition"; Van Loan, Pitsianis 1993, "Approximation with Kronecker products".
    """

    rank: int | None = None
    energy: float | None = None
    layers: Patterns = "*"
    size: float | None = None
    macs: float | None = None
    form: Form = "auto"
    least: Least = "outputs"

    def __post_init__(self) -> None:
        if self.rank is not None and not whole(self.rank, 1):
            raise RangeError(f"{named('rank', self.rank)} is not a whole number of at least 1; use for example 16.")
        for name, what in (("energy", "kept"), ("size", "of the weights left"), ("macs", "of the multiply-accumulates left")):
            value = getattr(self, name)
            if value is not None and not within(value, "(0, 1]"):
                raise RangeError(f"{named(name, value)} is the fraction {what} and must be in (0, 1]; use for example 0.9.")
        if len(self.goals) > 1:
            raise RangeError(f"{' and '.join(self.goals)} each say how thin layers get; give one of them.")
        check_ranks(self.form, self.least)

    @property
    def goals(self) -> list[str]:
        """What was asked for, as it was written; empty where outputs are to stay."""
        goals = ("rank", "energy", "size", "macs")
        return [f"{name}={getattr(self, name)}" for name in goals if getattr(self, name) is not None]

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The copy with thin layers.

        Raises: NothingChangedError when every layer would grow, or none can be thinner and outputs stay where they are;
        RangeError when `size` or `macs` is less than the least that there is, or `form` fits no layer.
        """
        check_call(self, model, task)
        start = time.monotonic()
        answers = Answers(model, task.calibration, task.outputs)
        work = _Work(self, model, task)
        made = work.made(work.asked()) if self.goals else work.within(answers)
        if not made.changes:
            remedy = "use a lower rank, energy or size" if self.goals else "size=0.5 makes layers thin whatever it costs"
            raise NothingChangedError(f"{self} would change nothing: {reasons(made.skipped)}; {remedy}.")
        moved = answers.moved(made.model)
        if moved > FAR:
            asked = ", ".join([*self.goals, *([f"form={self.form!r}"] if self.form != "auto" else [])])
            _log.warning("Factorize(%s) moves the outputs by %.0f %% of their spread; %s.", asked, 100 * moved, REMEDY)
            made.skipped.append(Change("", "outputs moved far", f"by {moved:.0%} of their spread over the samples; {REMEDY}"))
        figures = {"output_error": moved, "weights_left": made.weights}
        record = Record(str(self), tuple(made.changes), tuple(made.skipped), figures, time.monotonic() - start)
        return separate_(made.model, model), record


@dataclass(eq=False)
class _Made:
    """A model with thin layers, what was done to it, and the fraction of the selected weights that is left."""

    model: nn.Module
    changes: list[Change]
    skipped: list[Change]
    weights: float


class _Work:
    """One call of the step: the layers that it may change, and what each of their ranks costs and loses."""

    def __init__(self, step: Factorize, model: nn.Module, task: Task) -> None:
        self.step, self.model, self.task = step, model, task
        plain = borrowed(model)
        layers, self.left = thinnable(plain, step.layers, task.sample)
        others = {change.path: plain.get_submodule(change.path) for change in self.left}
        others = {path: layer for path, layer in others.items() if "weight" in weight_names(layer)}
        self.weights = {path: Site(path, "weight", layer) for path, layer in layers.items()}
        self.shapes = shapes(plain, layers | others, task.sample)
        self.fixed = sum(self._cost(path, WHOLE) for path in others)
        if self.weights and not any(fits(step.form, self.shapes[path]) for path in self.weights):
            raise RangeError(
                f"form={step.form!r} fits none of the selected layers ({', '.join(map(repr, [*self.weights][:5]))}): "
                "'tucker' and 'cp' are for convolutions over more than one place, 'kronecker' for Linear layers; use form='svd' "
                "or 'auto'."
            )

    def _cost(self, path: str, ranks: Ranks) -> int:
        """What a layer counts: in multiply-accumulates where these are the goal, else in weights."""
        shape = self.shapes[path]
        return shape.weights(ranks) if self.step.macs is None else shape.macs(ranks)

    def asked(self) -> dict[str, Ranks]:
        """The ranks that the step's goal gives to each layer."""
        if self.step.rank is not None:
            return {path: form_of_rank(self.step.form, self.shapes[path], self.step.rank) for path in self.weights}
        found = self._offers()
        if self.step.energy is None:
            return self._shared_out(found, self.step.size or self.step.macs or 1.0)
        lost = 1 - self.step.energy + 1e-12
        kept = {path: [offer for offer in each if offer.lost <= lost] for path, each in found.items()}
        return {path: min(each, key=lambda o: self._cost(path, o.ranks)).ranks for path, each in kept.items()}

    def _offers(self) -> dict[str, list[Offer]]:
        """For each layer the ranks with which it grows in nothing, as it is first."""
        square = SquaresOf(self.model, self.task, [*self.weights.values()], self.step.least)
        found = {}
        for path, weight in self.weights.items():
            shape = self.shapes[path]
            every = offers(weight.read(), shape, self.step.form, square(weight))
            found[path] = [offer for offer in every if not shape.grows(offer.ranks)]
        return found

    def _steps(self, found: Mapping[str, list[Offer]]) -> list[tuple[list[int], float, float]]:
        return [*cheapest_steps([[(self._cost(path, o.ranks), o.lost) for o in each] for path, each in found.items()])]

    def _shared_out(self, found: Mapping[str, list[Offer]], left: float) -> dict[str, Ranks]:
        steps = self._steps(found)
        whole = self.fixed + sum(self._cost(path, WHOLE) for path in found)
        at = next((at for at, (_, cost, _) in enumerate(steps) if self.fixed + cost <= left * whole), None)
        if at is None:
            least = (self.fixed + steps[-1][1]) / whole
            if least >= 1:
                why = f"no selected layer is smaller at any rank ({reasons(self.left)})"
                raise NothingChangedError(f"{self.step} would change nothing: {why}; leave the step out.")
            raise RangeError(
                f"{self.step.goals[0]} is less than there is: at the lowest ranks {least:.3f} of the selected layers is left; "
                "use at least that, or layers= without those that stay whole."
            )
        return _taken(found, steps[at][0])

    def within(self, answers: Answers) -> _Made:
        """The thinnest of some trials that moves outputs by at most STAY; how far one moves them says what to try next."""
        found = self._offers()
        steps = self._steps(found)
        best, low, high, limit = self.made({}), -1, len(steps), STAY**2
        for _ in range(TRIALS):
            at = sum(lost <= limit for _, _, lost in steps) - 1
            at = at if low < at < high else (low + high) // 2
            if not low < at < high:
                break
            made = self.made(_taken(found, steps[at][0]))
            moved = answers.moved(made.model)
            best, low, high = (made, at, high) if moved <= STAY else (best, low, at)
            if NEAR * STAY <= moved <= STAY:
                break
            limit = steps[at][2] * (NEAR * STAY / max(moved, 1e-6)) ** 2
        return best

    def made(self, ranks: Mapping[str, Ranks]) -> _Made:
        """The model with these ranks where a layer gets smaller by them."""
        shrinking = {path: few for path, few in ranks.items() if few != WHOLE and not self.shapes[path].grows(few)}
        model = borrowed(self.model)
        square = SquaresOf(self.model, self.task, [self.weights[path] for path in shrinking], self.step.least)
        thin = {
            path: thinned(path, model.get_submodule(path), few, square(self.weights[path])) for path, few in shrinking.items()
        }
        refused = thin_(model, {path: each.module for path, each in thin.items()}, self.task.sample)
        changes = [self._change(path, shrinking[path], each.kept) for path, each in thin.items() if path not in refused]
        whole = {path: refused.get(path) or self._why_whole(path, ranks.get(path, WHOLE)) for path in self.weights}
        skipped = [
            *self.left,
            *(Change(path, "left alone", whole[path]) for path in whole if path not in {c.path for c in changes}),
        ]
        skipped += [Change(key.removesuffix(".weight"), "by its weight alone", why) for key, why in square.missing.items()]
        left = sum(self.shapes[path].weights(WHOLE if path in refused else shrinking.get(path, WHOLE)) for path in self.shapes)
        return _Made(model, changes, skipped, left / sum(shape.weights(WHOLE) for shape in self.shapes.values()))

    def _change(self, path: str, ranks: Ranks, kept: float) -> Change:
        shape = self.shapes[path]
        what = f"{shape.named(ranks)}: {shape.weights(WHOLE):,} weights became {shape.weights(ranks):,}"
        of = "its outputs" if self.step.least == "outputs" else "its singular values"
        return Change(path, what, f"keeps {kept:.1%} of the squares of {of}")

    def _why_whole(self, path: str, ranks: Ranks) -> str:
        shape, step = self.shapes[path], self.step
        if ranks != WHOLE and shape.weights(ranks) >= shape.weights(WHOLE):
            return f"{shape.named(ranks)} would take {shape.weights(ranks):,} weights in place of {shape.weights(WHOLE):,}"
        if ranks != WHOLE:
            return f"{shape.named(ranks)} would take more multiply-accumulates"
        if step.energy is not None:
            return f"no rank with which it is smaller keeps {step.energy:.1%}"
        return (
            f"thinner, the outputs would move by more than {STAY:.0%} of their spread"
            if not step.goals
            else "others lose less for as much"
        )


def _taken(found: Mapping[str, list[Offer]], places: list[int]) -> dict[str, Ranks]:
    return {path: each[place].ranks for (path, each), place in zip(found.items(), places, strict=True)}
