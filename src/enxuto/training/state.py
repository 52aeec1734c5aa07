"""The state of a training that is under way, in a file from time to time: after a kill it goes on to the same result.

The clock says how often, so that it bounds what is lost and nothing else. Nothing is pickled but tensors, plain data, and the
few frozen dataclasses in `PARTS`.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.errors import OutputError
from enxuto.files import whole_file
from enxuto.functional.rate import Prices
from enxuto.layers.affine import Affine
from enxuto.layers.table import Table

logger = logging.getLogger(__name__)
EVERY_S = 60.0  # between two states
SHARE = 30.0  # times as long as writing one takes, at least
PARTS = (Affine, Table, Prices)
UNSAID = set(vars(nn.Module()))

_place: ContextVar[tuple[Path, nn.Module] | None] = ContextVar("unfinished", default=None)


@contextmanager
def resuming(folder: Path | None, model: nn.Module) -> Iterator[None]:
    """Within the block, a training of this very object keeps its state in the folder, whose name stands for what led there."""
    token = _place.set(None if folder is None else (folder, model))
    try:
        yield
    finally:
        _place.reset(token)


def place_of(model: nn.Module, words: str) -> Path | None:
    """Where the state of a training of this network belongs that these words describe; None where none is kept."""
    place = _place.get()
    if place is None or place[1] is not model:
        return None
    return place[0] / f"training-{sha256(words.encode()).hexdigest()[:16]}.pt"


class State:
    """The file of one training's state; without a path there is none, and nothing is ever due."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.written, self.cost = time.monotonic(), 0.0
        self.failed = False

    @property
    def answers(self) -> Path | None:
        """The file beside it for what is only ever added to: a teacher's answers."""
        return None if self.path is None else self.path.with_suffix(".answers")

    def due(self) -> bool:
        """True when it is time to write."""
        return self.path is not None and time.monotonic() - self.written >= max(EVERY_S, SHARE * self.cost)

    def write_(self, state: Mapping[str, Any]) -> None:
        """Puts the state into the file, whole or not at all; a disk that does not take it is told of once."""
        if self.path is None:
            return
        began = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as temporary:
                torch.save(dict(state), temporary)
        except (OSError, OutputError, RuntimeError) as error:  # RuntimeError is torch's for a disk that is full
            if not self.failed:
                logger.warning("the training goes on, but its state was not written: %s", error)
            self.failed = True
        self.written = time.monotonic()
        self.cost = self.written - began

    def read(self) -> dict[str, Any] | None:
        """The state that was written last; None where there is none, or it is damaged."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with torch.serialization.safe_globals([*PARTS]):
                found = torch.load(self.path, weights_only=True)
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            EOFError,
            TypeError,
            AttributeError,
            pickle.UnpicklingError,
        ) as error:
            logger.warning("the state of a training is damaged, which begins anew: %s (%s)", self.path, type(error).__name__)
            return None
        return found if isinstance(found, dict) else None

    def end_(self) -> None:
        """The training is over: its files go."""
        for path in (self.path, self.answers):
            if path is not None:
                path.unlink(missing_ok=True)


def remembered(thing: object) -> dict[str, Any]:
    """What of an object is numbers, texts and tensors of its own; what it was made of (networks, parameters) is made again."""
    own = {name: value for name, value in vars(thing).items() if name not in UNSAID and _plain(value)}
    return {"own": own, "tensors": thing.state_dict() if isinstance(thing, nn.Module) else {}}


def recall_(thing: object, state: Mapping[str, Any]) -> None:
    """Puts it back."""
    for name, value in state["own"].items():
        object.__setattr__(thing, name, value)
    if isinstance(thing, nn.Module):
        thing.load_state_dict(state["tensors"])


def _plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, (str, int)) and _plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_plain, value))
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and value.is_leaf
    return value is None or isinstance(value, (bool, int, float, str, *PARTS))
