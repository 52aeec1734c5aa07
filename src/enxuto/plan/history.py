"""What a search tried, in a file beside its checkpoints: after a kill the same search is answered from here and goes on.

Recipes are asked for in the same order again, so what the clock decided (the cut, the lengths of training) is kept too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from enxuto.errors import RecipeError
from enxuto.files import write_bytes
from enxuto.recipe import from_data, line, to_data
from enxuto.task import Step, Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One recipe the search tried: what it cost and gave, and whether it became the best; or why it was given up."""

    seconds: float  # since the search began
    recipe: str
    file_bytes: int
    quality: float  # on validation data; NaN for a recipe that was given up
    kept: bool
    why: str
    drop: float = 0.0  # what the search takes for lost, chance included
    error: float = 0.0  # standard error of what was lost; 0 where it is not known

    @property
    def given_up(self) -> bool:
        """True for a recipe that gave no file to judge: its training diverged, or the file cannot be written or read."""
        return math.isnan(self.quality)


def in_words(recipe: Sequence[Step]) -> str:
    """A recipe in one line."""
    return " + ".join(line(step) for step in recipe)


@dataclass(frozen=True)
class End:
    """Why a search ended, and the time it had."""

    cause: Literal["goal", "merit", "time", "interrupt"]
    seconds: float
    epoch_s: float | None = None  # of training, where even the shortest was too long for the time that was left
    hurried: bool = False  # where time was left, and no longer training fitted into it

    @property
    def words(self) -> str:
        """The cause as a clause."""
        if self.cause == "goal":
            return "the goal is met"
        if self.cause == "merit":
            return "nothing further was worth trying"
        if self.cause == "interrupt":
            return "it was interrupted"
        if self.hurried and self.epoch_s is None:
            return f"no longer training fits into what is left of {self.seconds:.0f} s"
        if self.epoch_s is None:
            return f"the time of {self.seconds:.0f} s was over"
        return f"an epoch of training takes {self.epoch_s:.3g} s, too long for the time of {self.seconds:.0f} s"


@dataclass
class History:
    """The trials of earlier runs of one search by their recipe, and what the clock decided in them."""

    path: Path
    key: str  # of the task, the target, the time and the quality of the original: another search has another
    known: dict[str, Trial] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # recipes that could not be applied, and why
    base: tuple[Step, ...] | None = None
    decided: list[float] = field(default_factory=list)  # lengths of training, in the order in which they were asked for

    def __post_init__(self) -> None:
        try:
            found = json.loads(self.path.read_bytes())
            if found["key"] != self.key:
                return
            known = {item["recipe"]: Trial(**item) for item in found["trials"]}
            refused = dict(found["refused"])
            base, decided = None if found["base"] is None else from_data(found["base"]), list(map(float, found["decided"]))
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError, RecipeError, OSError) as error:
            logger.warning("the history of an earlier search is damaged, and the search begins anew: %s", error)
            return
        self.known, self.refused, self.base, self.decided = known, refused, base, decided

    @property
    def seconds(self) -> float:
        """How long the search had taken when its last trial ended."""
        return max((trial.seconds for trial in self.known.values()), default=0.0)

    def answers(self, words: str) -> bool:
        """True where what became of this recipe is known already."""
        return words in self.known or words in self.refused

    def remember(self, words: str, outcome: Trial | str) -> None:
        """Keeps a recipe's trial, or why it could not be applied."""
        if isinstance(outcome, Trial):
            self.known[words] = outcome
        else:
            self.refused[words] = outcome
        self.keep()

    def keep(self) -> None:
        """Writes what is known, whole or not at all."""
        trials = [dataclasses.asdict(trial) for trial in self.known.values()]
        base = None if self.base is None else to_data(self.base)
        plain = {"key": self.key, "base": base, "decided": self.decided, "refused": self.refused, "trials": trials}
        write_bytes(self.path, json.dumps(plain).encode())


def search_key(digest: str, target: Target, seconds: float, before: Tensor) -> str:
    """A name for one search: a task of the same digest, the same goal, time and quality of the original, the same name."""
    sha = hashlib.sha256(repr((digest, target, seconds)).encode())
    sha.update(before.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
