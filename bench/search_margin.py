"""Which rule should decide that a recipe lost little enough, when the search has looked at many recipes on one validation set?

Searches are simulated, so that the true drop of the file they choose is known: paired right-or-wrong answers with the rate of
disagreement that compressed networks show, errors that neighbouring recipes share, and the ladder, the halving and the longer
trainings of our own search. For each rule: how often the promise is broken, and how many bytes the margin costs. No network here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

NORMAL = NormalDist()
ACCURACY = 0.9
NOISE = 0.36  # of the margins of a compressed network: 5 % of the samples change between right and wrong
CHANCE = 0.001  # spread of the true quality from one training to the next
STEEP = 1.6  # drops grow as bytes ** -STEEP; LeNet-300-100 from 6,146 to 3,311 bytes
Answers = NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """`accepts` a recipe while searching, on `seen` of the samples; with `confirms`, the others have the last word."""

    name: str
    accepts: Callable[[Answers, Answers, float], bool]
    seen: float = 1.0
    confirms: Callable[[Answers, Answers, float], bool] | None = None
    order: str = "smallest first"


@dataclass(frozen=True)
class Recipe:
    """One simulated recipe: the bytes of its file and what it really loses."""

    bytes: float
    drop: float


class World:
    """One validation set, one network and what compressing it costs. The same number gives the same world to every rule."""

    def __init__(self, samples: int, shared: float, number: int) -> None:
        self.chance = np.random.default_rng([number, samples])
        self.number, self.samples, self.shared = number, samples, shared
        self.margin = NORMAL.inv_cdf(ACCURACY) + self.chance.standard_normal(samples, dtype=np.float32)
        self.common = self.chance.standard_normal(samples, dtype=np.float32)
        self.before: Answers = self.margin > 0
        self.gain = self.chance.uniform(0, 0.003)  # training longer makes gentle recipes better than the original

    def recipe(self, size: float, training: int, bits: int) -> Recipe:
        """What `size` bytes give with this much training; sizes are relative to one that loses 0.4 points."""
        chance = np.random.default_rng([self.number, round(1e6 * size), training, bits])
        harsh = 0.004 * size**-STEEP * 0.85**training * (1.1 if bits == 3 else 1.0)
        return Recipe(size, harsh - self.gain + CHANCE * chance.standard_normal())

    def answers(self, recipe: Recipe) -> Answers:
        """Right or wrong on each validation sample."""
        chance = np.random.default_rng([self.number, round(1e9 * recipe.bytes), round(1e9 * abs(recipe.drop))])
        own = chance.standard_normal(self.samples, dtype=np.float32)
        noise = math.sqrt(self.shared) * self.common + math.sqrt(1 - self.shared) * own
        middle = NORMAL.inv_cdf(ACCURACY)
        shift = NORMAL.inv_cdf(max(1e-3, ACCURACY - recipe.drop)) * math.sqrt(1 + NOISE**2) - middle
        return self.margin + shift + NOISE * noise > 0


def search(world: World, allowed: float, rule: Rule) -> Recipe | None:
    """The smallest accepted recipe of a search like ours; None when there was none."""
    cut = round(rule.seen * world.samples)
    accepted: list[tuple[Recipe, Answers]] = []

    def tried(size: float, training: int, bits: int = 4) -> bool:
        recipe = world.recipe(size, training, bits)
        after = world.answers(recipe)
        good = rule.accepts(world.before[:cut], after[:cut], allowed)
        if good:
            accepted.append((recipe, after))
        return good

    for training in range(3):
        size = passed = 6.0
        while size > 0.05:
            if not tried(size, training):
                break
            passed, size = size, 0.6 * size
        failed, bits = size, 4
        if tried(0.85 * passed, training + 1, 3):
            bits = 3
        while passed / failed > 1.08:
            between = math.sqrt(passed * failed)
            if tried((0.85 if bits == 3 else 1) * between, training + 1, bits):
                passed = between
            else:
                failed = between
        tried(0.85 * passed, training + 2, 3)
        tried(passed, training + 2, 4)
    return _last_word(world, accepted, allowed, rule, cut)


def _last_word(world: World, accepted: list[tuple[Recipe, Answers]], allowed: float, rule: Rule, cut: int) -> Recipe | None:
    ordered = sorted(accepted, key=lambda pair: pair[0].bytes)
    if rule.confirms is None:
        return ordered[0][0] if ordered else None
    if rule.order == "smallest first":
        for recipe, after in ordered:
            if rule.confirms(world.before[cut:], after[cut:], allowed):
                return recipe
        return None
    best = None
    for recipe, after in reversed(ordered):  # from the gentlest: the first that fails ends the sequence
        if not rule.confirms(world.before[cut:], after[cut:], allowed):
            break
        best = recipe
    return best


def errors(many: float, most: float = math.inf) -> Callable[[Answers, Answers, float], bool]:
    """Accepts when the drop and so many of its standard errors, at most `most` times what is allowed, stay within it."""

    def accepts(before: Answers, after: Answers, allowed: float) -> bool:
        change = after.astype(np.float32) - before.astype(np.float32)
        error = float(change.std(ddof=1)) / math.sqrt(len(change))
        return -float(change.mean()) + min(many * error, most * allowed) <= allowed

    return accepts


def wagers(chance: float) -> Callable[[Answers, Answers, float], bool]:
    """Accepts when a bettor against 'more is lost than allowed' has multiplied the stake by 1 / chance (an e-value).

    Source: Waudby-Smith, Ramdas 2024, "Estimating means of bounded random variables by betting"; the bet is the best one for the
    variance seen, mixed over a few sizes.
    """

    def accepts(before: Answers, after: Answers, allowed: float) -> bool:
        gain = after.astype(np.float64) - before.astype(np.float64) + allowed  # its mean is below 0 when too much is lost
        spread = float(gain.var()) or 1.0
        sizes = np.array([0.25, 0.5, 1.0, 2.0]) * allowed / spread
        values, counts = np.unique(gain, return_counts=True)
        logs = [float(counts @ np.log1p(np.clip(size, 0, 0.9) * values)) for size in sizes]
        return float(np.mean(np.exp(np.minimum(logs, 700)))) >= 1 / chance

    return accepts


RULES = (
    Rule("the drop alone", errors(0.0)),
    Rule("0.84 standard errors", errors(0.84)),
    Rule("1.28 standard errors", errors(1.28)),
    Rule("1.5 standard errors", errors(1.5)),
    Rule("1.64 standard errors", errors(1.64)),
    Rule("1.64, at most what is allowed", errors(1.64, 1.0)),
    Rule("1.96, at most 1.5 times what is allowed (before)", errors(1.96, 1.5)),
    Rule("e-value of 10", wagers(0.1)),
    Rule("half chooses by 0, half confirms by 1.28, smallest first", errors(0.0), 0.5, errors(1.28)),
    Rule("half chooses by 0.84, half confirms by 0.84, smallest first", errors(0.84), 0.5, errors(0.84)),
    Rule("half chooses by 0, half confirms by 1.28, gentlest first", errors(0.0), 0.5, errors(1.28), "gentlest first"),
)
SETTINGS = ((1_000, 0.005), (1_000, 0.02), (2_000, 0.02), (5_000, 0.01), (10_000, 0.005), (20_000, 0.005))  # samples, max_drop


def told(rule: Rule, samples: int, allowed: float, shared: float, searches: int) -> dict[str, object]:
    """One row: the promise and the price of a rule over so many simulated searches."""
    broken, nothing, sizes, over = 0, 0, [], []
    for number in range(searches):
        world = World(samples, shared, number)
        found = search(world, allowed, rule)
        if found is None:
            nothing += 1
            continue
        broken += found.drop > allowed
        over.append(found.drop - allowed)
        sizes.append(found.bytes * ((allowed + world.gain) / 0.004) ** (1 / STEEP))
    return {
        "validation samples": samples,
        "max_drop": allowed,
        "shared": shared,
        "rule": rule.name,
        "broken": broken / searches,
        "nothing accepted": nothing / searches,
        "bytes": float(np.median(sizes)) if sizes else None,
        "worst 5 % over by": float(np.quantile(over, 0.95)) if over else None,
    }


def main(searches: int) -> None:
    """Prints the table and writes bench/results/search_margin.json."""
    from common import tell

    rows: list[dict[str, object]] = [
        told(rule, samples, allowed, shared, searches) for samples, allowed in SETTINGS for shared in (0.3, 0.7) for rule in RULES
    ]
    tell("search_margin", f"Promises kept and bytes paid by {searches} simulated searches a row", rows, searches=searches)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
