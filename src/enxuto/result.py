"""What `compress` gives back: the model, its file, what was done to it and why, and the numbers; also as result.json."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from enxuto.artifact.save import Entry
from enxuto.evaluation.measurement import Evaluation
from enxuto.files import write_bytes
from enxuto.memory.footprint import Footprint, footprints
from enxuto.plan.history import Trial
from enxuto.recipe import to_data
from enxuto.records import Record
from enxuto.task import Step, Target, Task


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed network and the proof. `artifact` is the .nxt file, `exports` the exported files by precision.

    `met` is false where a part of the goal was missed, and where the network is no longer the same and nobody allowed that with
    `max_drop`: also of a recipe, without a goal. `verdict` says it in words.
    """

    task: Task
    model: nn.Module
    steps: tuple[Step, ...]
    record: tuple[Record, ...]
    ledger: tuple[Entry, ...]
    before: tuple[Entry, ...]
    evaluation: Evaluation
    artifact: Path
    exports: dict[str, Path] = field(default_factory=dict)
    target: Target | None = None
    met: bool = True
    verdict: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    history: tuple[Trial, ...] = ()
    judged_quality: float | None = None  # of the original, on the data on which the trials were judged

    @cached_property
    def memory(self) -> tuple[Footprint, ...]:
        """The memory of an inference and of a training step, before and after; foreseen when it is first asked for."""
        return footprints(self.task, self.model)

    def document(self) -> dict[str, Any]:
        """Everything but the model as JSON-able data: the content of result.json, and all that a report needs."""
        evaluation = asdict(self.evaluation)
        target = asdict(self.target) if self.target is not None else None
        plain = {
            "name": self.task.name or type(self.task.model).__name__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "enxuto": version("enxuto"),
            "seed": self.task.seed,
            "target": target,
            "met": self.met if self.target is not None or not self.met else None,
            "verdict": self.verdict,
            "advice": self.advice,
            "recipe": to_data(self.steps),
            **evaluation,
            "compression": self.evaluation.compression,
            "speedup": self.evaluation.speedup,
            "ship": [asdict(file) for file in self.evaluation.ship],
            "records": [asdict(record) for record in self.record],
            "ledger": [asdict(entry) for entry in self.ledger],
            "before_ledger": [asdict(entry) for entry in self.before],
            "history": [asdict(trial) for trial in self.history],
            "judged_quality": self.judged_quality,
            "judged_name": None if self.judged_quality is None else "evaluate" if self.task.evaluate else "agreement",
            "memory": [asdict(footprint) for footprint in self.memory],
        }
        return _finite(plain)

    def write(self, path: Path) -> None:
        """Writes result.json, whole or not at all."""
        write_bytes(path, (json.dumps(self.document(), indent=1, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    """The same data with null for what JSON cannot hold, and lists for tuples."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
