"""The best quality that fits into so many bytes: untrained recipes first, then ever longer trained ones.

A generator yields a recipe and is sent what became of it, so that it can be tested as a function. It knows no clock: how long a
level may train is asked of whoever runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from enxuto.plan.history import Trial
from enxuto.plan.levels import FINISH_RATE, SPARSEST, level, level_densities, trained
from enxuto.plan.rated import priced
from enxuto.plan.untrained import Recipe, Tries, Wish, folded_or_not, untrained
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.task import Step

BITS = (8, 6, 5, 4, 3, 2)
CODINGS: tuple[tuple[Step, ...], ...] = (
    tuple(Share(bits=bits, biases=8) for bits in BITS),
    tuple(Quantize(bits=bits, per="network", fit="absmax", biases=8) for bits in BITS),
    tuple(Quantize(bits=bits, biases=8) for bits in BITS),
)
"""Ways to write weights down, each from gentle to harsh: shared values, one scale for the network, one for each channel."""
TIGHT = 0.97  # of the bytes allowed: a file that uses so many is not made larger
AIM = 0.985
LEAST = 1e-4  # of the weights: the sparsities of steps have four digits
PROBES = 4  # files that are made to find the density that just fits
FINER = 2  # codings finer than the one that fits, tried with fewer weights
PATIENCE = 2  # rounds of ever longer training that may bring nothing
TRAINED_BITS = (4, 3, 5)
GROWS = 0.75  # what trains for bytes gains more by length: it lost 1.1 times as much in two epochs, half in eight
TRAININGS = 2  # for the bytes of the file, the second asked for what the first was off; each as long as all levels


@dataclass
class Fitting:
    """The recipes for one network and one limit. `epochs(passes, before)` says how long a level trains in a round of so many
    trainings, more than `before`; 0 when the time that is left holds no such round.
    """

    base: Recipe
    fold: Recipe
    density: float  # of the weights, before anything is pruned
    limit: float
    epochs: Callable[[float, float], float]
    best: Trial | None = None  # of those that fit
    recipe: Recipe = ()  # of the best
    sizes: dict[Recipe, int] = field(default_factory=dict)
    drops: dict[Recipe, float] = field(default_factory=dict)  # of those that fit

    def recipes(self) -> Tries:
        """All of them, until the rounds bring nothing more, nothing is lost, or the time holds no further round."""
        yield from self._untrained()
        fitting = []
        for coding in CODINGS:
            place = yield from self._coarsest_needed(coding)
            fitting.append((place, coding))
        for place, coding in fitting:
            for finer in coding[max(0, place - FINER) : place]:
                yield from self._filled(self._pruned((finer,)), self._guess())
        yield from self._rounds()

    @property
    def lossless(self) -> bool:
        """True when the best that fits loses nothing: no recipe can do better."""
        return self.best is not None and self.best.drop <= 0

    def _try(self, recipe: Recipe) -> Generator[Recipe, Trial | None, int | None]:
        """The bytes of the file; None when the recipe could not be applied."""
        if recipe in self.sizes:
            return self.sizes[recipe]
        trial = yield from self._asked(recipe)
        return None if trial is None else trial.file_bytes

    def _asked(self, recipe: Recipe) -> Generator[Recipe, Trial | None, Trial | None]:
        trial = yield recipe
        if trial is None:
            return None
        self.sizes[recipe] = trial.file_bytes
        if trial.file_bytes <= self.limit:
            self.drops[recipe] = trial.drop
            if self.best is None or trial.drop < self.best.drop:
                self.best, self.recipe = trial, recipe
        return trial

    def _untrained(self) -> Tries:
        """Thin layers and one knob for all bits: files that use the bytes that are allowed, of which the one that loses least."""
        wish = Wish(
            does=lambda trial: trial.file_bytes <= self.limit,
            coarser=lambda trial: trial.file_bytes > self.limit,
            cost=lambda trial: trial.drop,
            enough=lambda trial: TIGHT * self.limit <= trial.file_bytes <= self.limit,
        )
        recipes, trial = untrained(folded_or_not(self.base, self.fold), wish), None
        while not self.lossless:
            try:
                recipe = recipes.send(trial)
            except StopIteration as end:
                self.fold = end.value[len(self.base) :]
                return
            trial = yield from self._asked(recipe)

    def _coarsest_needed(self, coding: Sequence[Step]) -> Generator[Recipe, Trial | None, int]:
        """Halving the choice: the place of the gentlest coding that fits without pruning; behind the last if none does."""
        low, high = 0, len(coding)
        while low < high:
            middle = (low + high) // 2
            size = yield from self._try((*self.base, *self.fold, coding[middle]))
            if size is not None and size <= self.limit:
                high = middle
            else:
                low = middle + 1
        return high

    def _filled(self, made: Callable[[float], Recipe], density: float) -> Generator[Recipe, Trial | None, float]:
        """The density at which the file uses the bytes allowed, moved from a first guess: of those tried, the one that fits and
        loses least; where none fits, the least."""
        known: list[tuple[float, float]] = []
        tried: list[float] = []
        for _ in range(PROBES):
            density = min(max(density, LEAST), self.density)
            if density in tried:
                break
            size = yield from self._try(made(density))
            tried.append(density)
            if size is None or TIGHT * self.limit <= size <= self.limit or (density == self.density and size <= self.limit):
                break
            known.append((math.log(density), math.log(size)))
            density = math.exp(_moved(known, math.log(AIM * self.limit)))
        fitting = [density for density in tried if made(density) in self.drops]
        return min(fitting, key=lambda density: self.drops[made(density)]) if fitting else min(tried)

    def _pruned(self, finish: Recipe) -> Callable[[float], Recipe]:
        """Recipes without training, by density."""
        return lambda density: (*self.base, *self._prune(density), *self.fold, *finish)

    def _learned(self, finish: Recipe, epochs: float) -> Callable[[float], Recipe]:
        """Recipes that are pruned level by level with training between, and trained at the end, by density."""

        def made(density: float) -> Recipe:
            steps = self.base
            for step in level_densities(self.density, density):
                steps = (*steps, *level(step, epochs))
            return (*steps, *self.fold, *finish, *trained(epochs, FINISH_RATE))

        return made

    def _prune(self, density: float) -> Recipe:
        return (Prune(round(1 - density, 4)),) if density < self.density else ()

    def _rounds(self) -> Tries:
        """Each round trains longer than the one before; what did best in the first is what the others train."""
        start: float = yield from self._filled(self._pruned((Share(bits=4, biases=8),)), self._guess())
        densities = {bits: min(start * 7 / (bits + 3), self.density) for bits in TRAINED_BITS}
        untrained, epochs, idle, for_bytes = self.recipe, 0.0, 0, True
        levels = len(level_densities(self.density, min(densities.values())))
        while idle < PATIENCE and not self.lossless:
            passes = levels * bool(densities) + 2 * len(densities) + TRAININGS * (levels + 1) * for_bytes + 2
            epochs = self.epochs(passes, epochs)
            if not epochs:
                return
            before = self.best
            if untrained:
                yield from self._try((*untrained, *trained(epochs, FINISH_RATE)))
            drops = {0: (yield from self._priced(round((levels + 1) * epochs, 3)))} if for_bytes else {}
            for bits, density in densities.items():
                made = self._learned((Share(bits=bits, biases=8),), epochs)
                densities[bits] = yield from self._filled(made, density)
                drops[bits] = self.drops.get(made(densities[bits]), math.inf)
            keep = min(drops, key=lambda bits: drops[bits] * (1.0 if bits else GROWS))
            densities = {keep: densities[keep]} if keep else {}
            for_bytes = not keep
            idle = 0 if self.best is not before else idle + 1

    def _priced(self, epochs: float) -> Generator[Recipe, Trial | None, float]:
        """One training for the bytes allowed, again where the file missed them; the least that a file that fits loses."""
        asked, drops = AIM * self.limit, [math.inf]
        for _ in range(TRAININGS):
            recipe = (*self.base, *self.fold, *priced(epochs, f"{round(asked)} B"))
            size = yield from self._try(recipe)
            drops.append(self.drops.get(recipe, math.inf))
            if size is None or TIGHT * self.limit <= size <= self.limit:
                break
            asked *= AIM * self.limit / size
        return min(drops)

    def _guess(self) -> float:
        """A first density for shared values of 4 bits, from whatever file is known: bytes fall about as the weights left."""
        known = [size for recipe, size in self.sizes.items() if not any(isinstance(step, (Prune, Factorize)) for step in recipe)]
        return max(SPARSEST, min(1.0, AIM * self.limit / min(known, default=self.limit))) * self.density


def _moved(known: Sequence[tuple[float, float]], wanted: float) -> float:
    """Where a falling line through the two points nearest to what is wanted meets it; both axes are logarithms."""
    near = sorted(known, key=lambda point: abs(point[1] - wanted))[:2]
    (x, y), *others = near
    slope = (y - others[0][1]) / (x - others[0][0]) if others and others[0][0] != x else 1.0
    return x + (wanted - y) / min(max(slope, 0.3), 3.0)
