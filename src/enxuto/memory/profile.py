"""What a memory profile is: blocks of storage with the moments they lived, and what can be read from them.

Nothing here measures; `predict` and `record` fill the same table, so that every question has one answer for both.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from enxuto.errors import TaskError
from enxuto.files import write_bytes

WEIGHTS = "weights"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer states"
ACTIVATIONS = "activations"
INPUTS = "inputs"
TEMPORARIES = "temporaries"
CATEGORIES = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, INPUTS, TEMPORARIES)
"""Whose memory it is. Buffers count as weights; activations of a training step are what backward still needs (born in the
forward pass, alive when the backward pass begins), of an inference what leaves the layer that made it."""

FORWARD, BACKWARD, UPDATE = PHASES = ("forward", "backward", "update")


class Block(NamedTuple):
    """One storage: its bytes, the moments it lived (from `born` up to but not at `died`), whose it is and where it was made."""

    size_bytes: int
    born: int
    died: int
    category: str
    path: str


class Moment(NamedTuple):
    """One operator of the run: its phase, the layer it belongs to ("" outside of all), its name, and its work.

    Work compares operators of one profile: bytes moved, and products as the bytes that could be moved meanwhile.
    """

    phase: str
    path: str
    operator: str
    work: float = 0.0


@dataclass(frozen=True)
class Profile:
    """The memory of one training step or one inference, moment by moment.

    A moment is one operator. `predicted` says whether it was foreseen or measured, `words` what to know about it; `unsure_bytes`
    is the most at one moment that is a guess, by rules of other processors, and 0 where all is known.
    `rss_bytes` is the resident size of the whole process at each moment, where it was recorded; `seconds` how long the
    step took then.
    Raises: TaskError when there is no moment.
    """

    blocks: tuple[Block, ...]
    moments: tuple[Moment, ...]
    predicted: bool
    words: str = ""
    rss_bytes: tuple[int, ...] | None = None
    seconds: float | None = None
    unsure_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.moments:
            raise TaskError("the profile holds no moment, nothing ran; the model must compute something.")

    @cached_property
    def timeline(self) -> Mapping[str, NDArray[np.int64]]:
        """Bytes alive of each category at each moment. Shapes: [moments] each, in the order of CATEGORIES."""
        changes = {category: np.zeros(len(self.moments) + 1, np.int64) for category in CATEGORIES}
        for block in self.blocks:
            changes[block.category][block.born] += block.size_bytes
            changes[block.category][block.died] -= block.size_bytes
        return {category: np.cumsum(change)[:-1] for category, change in changes.items()}

    @cached_property
    def total_bytes(self) -> NDArray[np.int64]:
        """Bytes alive at each moment. Shapes: [moments]."""
        return np.sum(list(self.timeline.values()), axis=0)

    @cached_property
    def peak(self) -> int:
        """The moment at which most is alive; the first of several."""
        return int(self.total_bytes.argmax())

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive at one moment, weights and inputs included."""
        return int(self.total_bytes[self.peak])

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes of each category at the peak."""
        return {category: int(bytes_[self.peak]) for category, bytes_ in self.timeline.items()}

    @property
    def by_layer(self) -> dict[str, dict[str, int]]:
        """Bytes of each layer and category at the peak, the largest layer first; "" is what belongs to no layer."""
        return self.layers_at(self.peak)

    @cached_property
    def saved_bytes(self) -> dict[str, int]:
        """Bytes that each layer keeps for the backward pass; empty for an inference."""
        backward = next((at for at, moment in enumerate(self.moments) if moment.phase == BACKWARD), None)
        if backward is None:
            return {}
        return {path: parts[ACTIVATIONS] for path, parts in self.layers_at(backward).items() if ACTIVATIONS in parts}

    @property
    def activation_bytes(self) -> int:
        """The most bytes of activations alive at one moment."""
        return int(self.timeline[ACTIVATIONS].max())

    def layers_at(self, at: int) -> dict[str, dict[str, int]]:
        """Bytes of each layer and category at a moment, the largest layer first."""
        layers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for block in self.blocks:
            if block.born <= at < block.died and block.size_bytes:
                layers[block.path][block.category] += block.size_bytes
        ranked = sorted(layers.items(), key=lambda item: -sum(item[1].values()))
        return {path: dict(parts) for path, parts in ranked}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the profile as JSON, whole or not at all."""
        write_bytes(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """The profile that `save` wrote."""
        with open(path, encoding="utf-8") as file:
            read: dict[str, Any] = json.load(file)
        blocks = tuple(Block(*block) for block in read.pop("blocks"))
        moments = tuple(Moment(*moment) for moment in read.pop("moments"))
        rss = read.pop("rss_bytes")
        return cls(blocks, moments, rss_bytes=None if rss is None else tuple(rss), **read)

    def because(self, words: str) -> Profile:
        """The same profile with something to know about it."""
        return replace(self, words=words)
