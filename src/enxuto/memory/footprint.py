"""What compression does to memory: the same run foreseen for a network and for what became of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from enxuto.batches import samples
from enxuto.memory.outline import Outline, outline
from enxuto.memory.prediction import foreseen
from enxuto.memory.training import INFERENCE, TRAINING, Pass
from enxuto.surgery import to_float
from enxuto.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Footprint:
    """One kind of run, before and after compression; `words` says what to know of it, or why it is not known."""

    what: str
    batch: int = 0
    before: Outline | None = None
    after: Outline | None = None
    words: str = ""


def footprints(task: Task, compressed: nn.Module) -> tuple[Footprint, ...]:
    """The memory of an inference and, when the task can train, of a training step; neither is run.

    A training step is that of `Recover`: of both networks with float weights, with AdamW, on the first batch of `train`.
    """
    found = [_foreseen(INFERENCE, task.model, compressed, task.sample)]
    if task.train is not None and task.loss is not None:
        with torch.random.fork_rng(devices=[]):  # a loader that shuffles asks for random numbers
            batch = next(iter(task.train), None)
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            found.append(_foreseen(TRAINING, task.model, to_float(compressed), tuple(batch), loss=task.loss))
    return tuple(found)


def _foreseen(what: str, before: nn.Module, after: nn.Module, batch: Any, loss: Any = None) -> Footprint:
    optimizer = torch.optim.AdamW if loss is not None else None
    try:
        first, last = (foreseen(model, batch, Pass(loss, optimizer)) for model in (before, after))
        words = "; ".join(dict.fromkeys(profile.words for profile in (first, last) if profile.words))
        return Footprint(what, samples(batch), outline(first), outline(last), words)
    except Exception as error:  # a network that does not run on tensors without values fails in any way it likes
        words = " ".join(f"{type(error).__name__}: {error}".split())
        logger.debug("the memory of the %s could not be foreseen: %s", what, words)
        return Footprint(what, words=words if len(words) <= 300 else f"{words[:299]}…")
