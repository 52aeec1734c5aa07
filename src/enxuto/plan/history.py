"""What a search tried, in a file beside its checkpoints: after a kill the same search is answered from here and goes on.

Recipes are asked for in the same order again, so what the clock decided (the cut, the length of training) is kept too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from enxuto.errors import RecipeError
from enxuto.files import write_bytes
from enxuto.recipe import from_data, line, to_data
from enxuto.task import Step, Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One recipe the search tried: what it cost and gave, and whether it became the best."""

    seconds: float  # since the search began
    recipe: str
    file_bytes: int
    quality: float  # on validation data
    kept: bool
    why: str
    drop: float = 0.0  # what the search takes for lost, chance included


def in_words(recipe: Sequence[Step]) -> str:
    """A recipe in one line."""
    return " + ".join(line(step) for step in recipe)


@dataclass
class History:
    """The trials of earlier runs of one search by their recipe, and what the clock decided in them."""

    path: Path
    key: str  # of the task, the target, the time and the quality of the original: another search has another
    known: dict[str, Trial] = field(default_factory=dict)
    base: tuple[Step, ...] | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        try:
            found = json.loads(self.path.read_bytes())
            if found["key"] != self.key:
                return
            known = {item["recipe"]: Trial(**item) for item in found["trials"]}
            base, epochs = None if found["base"] is None else from_data(found["base"]), found["epochs"]
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError, RecipeError, OSError) as error:
            logger.warning("the history of an earlier search is damaged, and the search begins anew: %s", error)
            return
        self.known, self.base, self.epochs = known, base, epochs

    @property
    def seconds(self) -> float:
        """How long the search had taken when its last trial ended."""
        return max((trial.seconds for trial in self.known.values()), default=0.0)

    def keep(self) -> None:
        """Writes what is known, whole or not at all."""
        trials = [dataclasses.asdict(trial) for trial in self.known.values()]
        base = None if self.base is None else to_data(self.base)
        plain = {"key": self.key, "base": base, "epochs": self.epochs, "trials": trials}
        write_bytes(self.path, json.dumps(plain).encode())


def search_key(digest: str, target: Target, seconds: float, before: Tensor) -> str:
    """A name for one search: a task of the same digest, the same goal, time and quality of the original, the same name."""
    sha = hashlib.sha256(repr((digest, target, seconds)).encode())
    sha.update(before.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
