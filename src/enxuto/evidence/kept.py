"""What the batches showed of a network, kept in a folder: whoever asks the same of the same network again does not wait for it.

Within `keeping`, answers about one very network are written and found again, to the bit; about any other nothing is known here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from enxuto.errors import OutputError
from enxuto.files import write_bytes

LARGEST_BYTES = 256_000_000  # of one answer: larger ones are made again, which costs one pass over the batches


@dataclass(frozen=True, eq=False)
class Answer:
    """Plain data, as JSON has it, and tensors by name."""

    data: Any
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Place:
    folder: Path
    model: nn.Module


_place: ContextVar[_Place | None] = ContextVar("evidence", default=None)


@contextmanager
def keeping(folder: Path | None, model: nn.Module) -> Iterator[None]:
    """Within the block, what is asked of this very object is kept in the folder, whose name stands for it and for the batches."""
    token = _place.set(None if folder is None else _Place(folder, model))
    try:
        yield
    finally:
        _place.reset(token)


def known(model: nn.Module, question: str, *asked: Any) -> Answer | None:
    """What was answered before; None where nothing was, it is damaged, or answers about this network are not kept.

    `asked` is plain data: all that the answer depends on beside the network and the batches.
    """
    path = _path(model, question, asked)
    if path is None or not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            tensors = {name: torch.from_numpy(found[name]) for name in found.files if name != "."}
            return Answer(json.loads(found["."].tobytes()), tensors)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def keeps(model: nn.Module) -> bool:
    """True where answers about this very object are kept."""
    place = _place.get()
    return place is not None and place.model is model


def keep(answer: Answer, model: nn.Module, question: str, *asked: Any) -> None:
    """Keeps an answer, unless it is larger than LARGEST_BYTES or the disk does not take it: it can be had again."""
    path = _path(model, question, asked)
    if path is None or sum(tensor.numel() * tensor.itemsize for tensor in answer.tensors.values()) > LARGEST_BYTES:
        return
    made = io.BytesIO()
    entries: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in answer.tensors.items()}
    entries["."] = np.frombuffer(json.dumps(answer.data).encode(), np.uint8)
    np.savez(made, **entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, made.getvalue())
    except (OSError, OutputError):
        return


def _path(model: nn.Module, question: str, asked: tuple[Any, ...]) -> Path | None:
    place = _place.get()
    if place is None or place.model is not model:
        return None
    words = json.dumps([question, asked], sort_keys=True)
    return place.folder / f"{question}-{sha256(words.encode()).hexdigest()[:16]}.npz"
