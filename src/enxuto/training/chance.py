"""Where all random numbers are that a training draws: torch's on each device, numpy's, Python's, and those of a loader's own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

OWN = ("", "sampler", "batch_sampler", "batch_sampler.sampler")  # parts of a DataLoader that may have a generator


def chance(source: object) -> dict[str, Any]:
    """The states now, as plain data and tensors; `source` is what gives the batches."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
        "own": {place: each.get_state() for place, each in _generators(source).items()},
    }


def set_chance_(state: dict[str, Any], source: object) -> None:
    """All random numbers go on from there."""
    torch.set_rng_state(state["torch"])
    for device, each in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(each, device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    for place, generator in _generators(source).items():
        generator.set_state(state["own"][place])


def _generators(source: object) -> dict[str, torch.Generator]:
    found = {}
    for path in OWN:
        part: Any = source
        for name in path.split(".") if path else ():
            part = getattr(part, name, None)
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            found[path] = generator
    return found
