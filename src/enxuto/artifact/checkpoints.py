"""Checkpoints of a recipe: after each step a .nxt file and its records, under a name made from all that led there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from enxuto.artifact.save import load, save
from enxuto.errors import ArtifactError
from enxuto.files import write_bytes
from enxuto.recipe import to_data
from enxuto.task import Change, Record, Step, Task, count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderCheckpoints:
    """Checkpoints in a folder. A damaged one counts as missing, and is made again."""

    folder: Path

    def find(self, task: Task, steps: Sequence[Step]) -> tuple[nn.Module, tuple[Record, ...]] | None:
        """What exactly these steps gave before, if it is here."""
        path = self.folder / fingerprint(task, steps)
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
        path = self.folder / fingerprint(task, steps)
        save(model, path.with_suffix(".nxt"), original=task.model)
        write_bytes(path.with_suffix(".json"), json.dumps([dataclasses.asdict(record) for record in records]).encode())


def fingerprint(task: Task, steps: Sequence[Step]) -> str:
    """A name for what these steps make of this task: same weights, amount of data, seed and steps, same name."""
    sized = [count(data) if data is not None else None for data in (task.calibration, task.train)]
    digest = hashlib.sha256(json.dumps([to_data(steps), task.seed, sized], sort_keys=True).encode())
    for name, tensor in task.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _from_json(data: bytes) -> tuple[Record, ...]:
    records = []
    for item in json.loads(data):
        for name in ("changes", "skipped"):
            item[name] = tuple(Change(**change) for change in item[name])
        records.append(Record(**item))
    return tuple(records)
