"""Checkpoints of a recipe: after each step a .nxt file and its records, under a name made from all that led there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from enxuto.artifact.digest import digest_of, task_digest
from enxuto.artifact.save import load, save
from enxuto.errors import ArtifactError
from enxuto.files import write_bytes
from enxuto.recipe import every, to_data
from enxuto.records import Change, Record
from enxuto.task import Step, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FolderCheckpoints:
    """Checkpoints in a folder. A damaged one counts as missing, and is made again.

    What a task holds is looked at once: make new checkpoints for a task that was changed.
    """

    folder: Path
    _digests: WeakKeyDictionary[Task, str] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def digest(self, task: Task) -> str:
        """The name of what the task holds."""
        if task not in self._digests:
            self._digests[task] = task_digest(task)
        return self._digests[task]

    def find(self, task: Task, steps: Sequence[Step]) -> tuple[nn.Module, tuple[Record, ...]] | None:
        """What exactly these steps gave before, if it is here."""
        path = self.folder / fingerprint(self.digest(task), steps)
        if not path.with_suffix(".json").exists():  # written last: without it the model may be missing
            return None
        try:
            model = load(path.with_suffix(".nxt"), into=task.model)
            return model, _from_json(path.with_suffix(".json").read_bytes())
        except (ArtifactError, ValueError, TypeError, KeyError):
            logger.warning("a checkpoint is damaged and is made again: %s", path)
            return None

    def keep(self, task: Task, steps: Sequence[Step], model: nn.Module, records: Sequence[Record]) -> None:
        """Keeps what these steps gave: the model first, the records when it is whole."""
        path = self.folder / fingerprint(self.digest(task), steps)
        save(model, path.with_suffix(".nxt"), original=task.model)
        write_bytes(path.with_suffix(".json"), json.dumps([dataclasses.asdict(record) for record in records]).encode())

    def evidence(self, task: Task, steps: Sequence[Step]) -> Path:
        """A folder beside the checkpoint, for what the batches show of the network there."""
        return self.folder / "evidence" / fingerprint(self.digest(task), steps)


def fingerprint(digest: str, steps: Sequence[Step]) -> str:
    """A name for what these steps make of a task of this digest."""
    words = json.dumps([digest, to_data(steps), digest_of([type(step) for step in every(steps)])], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _from_json(data: bytes) -> tuple[Record, ...]:
    records = []
    for item in json.loads(data):
        for name in ("changes", "skipped"):
            item[name] = tuple(Change(**change) for change in item[name])
        records.append(Record(**item))
    return tuple(records)
