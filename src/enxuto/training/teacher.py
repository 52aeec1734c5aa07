"""The teacher of a training: what it answers to each sample is kept, and read where a batch brings the sample again."""

from __future__ import annotations

import errno
import math
import os
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from enxuto.batches import Batch, batch_size, leaves, mapped, rows
from enxuto.calls import call, evaluating
from enxuto.functional.likeness import ROUNDING
from enxuto.outputs import output_tensors
from enxuto.training.inside import Inside

MOST_BYTES = 1_000_000_000  # of answers, in a file without a name; others are asked for each time
UNSEEN = 2.0  # epochs in which no sample was seen twice, as where images are cropped at random: none will be


KEY = 16  # bytes of what tells a sample from every other
INSIDE = "inside "  # before a path, in the names of what layers returned


class Teacher:
    """A network in evaluation mode that is asked for its outputs, and for what layers inside it return.

    In a training of more than one of `epochs`, answers are kept where they are a row for each sample that does not hang on the
    other samples of its batch, and on a processor: an accelerator answers faster than it is told what it was asked.
    """

    def __init__(self, module: nn.Module, epochs: float = 1.0) -> None:
        self.module = module
        self.until = UNSEEN / epochs if epochs > 1 else 0.0  # the part of the training in which samples may be seen again
        self.kept: _Kept | None = None
        self.inside = Inside(())
        self.place: Path | None = None

    def state(self) -> dict[str, Any]:
        """What it knows by now, where its answers are in a file at `place`; that file is only ever added to."""
        return {"until": self.until, "kept": None if self.kept is None or self.place is None else self.kept.state()}

    def resume_(self, state: Mapping[str, Any]) -> None:
        """Knows that again. Raises: OSError or ValueError where the file is gone or shorter."""
        self.until = state["until"]
        self.kept = None if state["kept"] is None else _Kept(self.place, state["kept"])

    def look_(self, paths: Iterable[str]) -> None:
        """From now on answers hold what the layers at these paths return."""
        self.inside = Inside(paths)

    def __call__(self, inputs: Batch, progress: float = 0.0) -> Mapping[str, Tensor]:
        """What the network returns for the inputs, when that part of the training is done, 0...1; layers by INSIDE + path."""
        size = batch_size(inputs)
        if progress >= self.until or not all(_plain(tensor, size) for tensor in leaves(inputs)):
            return self._asked(inputs)
        keys = _keys(inputs, size)
        if self.kept is not None and (found := self.kept.read(keys)) is not None:
            self.until = math.inf
            return found
        answer = self._asked(inputs)
        if self.kept is None and size > 1:
            self.kept, self.until = (_Kept(self.place), self.until) if self._alone(inputs, answer, size) else (None, 0.0)
        if self.kept is not None:
            self.kept.write(keys, answer, size)
        return answer

    def _asked(self, inputs: Batch) -> Mapping[str, Tensor]:
        with evaluating(self.module), self.inside.watching(self.module):
            outputs = output_tensors(call(self.module, inputs))
            return outputs | {INSIDE + path: tensor for path, tensor in self.inside.take().items()}

    def _alone(self, inputs: Batch, answer: Mapping[str, Tensor], size: int) -> bool:
        """True where each sample gets the same answer without those after it."""
        half = size // 2
        fewer = self._asked(rows(inputs, 0, half))
        return fewer.keys() == answer.keys() and all(
            _plain(whole, size)
            and _plain(fewer[name], half)
            and fewer[name].shape[1:] == whole.shape[1:]
            and torch.allclose(fewer[name], whole[:half], rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
            for name, whole in answer.items()
        )


class _Kept:
    """Rows of bytes in a file, found by what was asked: each row is its key and the answer.

    Without a place the file has no name, and ends with this object.
    """

    def __init__(self, place: Path | None = None, state: Mapping[str, Any] | None = None) -> None:
        self.place = place
        self.places: dict[bytes, int] = {}
        self.layout: list[tuple[str, torch.Size, torch.dtype]] = []
        self.file: IO[bytes] | None = None
        self.full = False
        self.seen: NDArray[np.uint8] = np.empty((0, 0), np.uint8)
        if state is not None:
            self._again_(state)

    def state(self) -> dict[str, Any]:
        """How many rows there are, and what they hold."""
        layout = [(name, list(shape), str(dtype)) for name, shape, dtype in self.layout]
        return {"rows": len(self.places), "width": self.seen.shape[1], "layout": layout, "full": self.full}

    def _again_(self, state: Mapping[str, Any]) -> None:
        """The rows that were there then; what came after is cut off."""
        rows, width = state["rows"], state["width"]
        self.layout = [
            (name, torch.Size(shape), getattr(torch, dtype.removeprefix("torch."))) for name, shape, dtype in state["layout"]
        ]
        self.full, self.seen = state["full"], np.empty((0, width), np.uint8)
        if not rows:
            return
        if self.place is None or self.place.stat().st_size < rows * width:
            raise ValueError(f"'{self.place}' is shorter than {rows} rows")
        self._open_("r+b")
        assert self.file is not None
        self.file.truncate(rows * width)
        self.file.seek(0, os.SEEK_END)
        self.seen = np.memmap(self.file, np.uint8, "r", shape=(rows, width))
        self.places = {bytes(key): at for at, key in enumerate(self.seen[:, :KEY])}

    def _open_(self, mode: str) -> None:
        if self.place is not None:
            self.place.parent.mkdir(parents=True, exist_ok=True)
        # without a buffer: what a full disk has refused would be tried again at each look, and at the end
        self.file = tempfile.TemporaryFile(buffering=0) if self.place is None else open(self.place, mode, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def read(self, keys: Sequence[bytes]) -> Mapping[str, Tensor] | None:
        """The answers to all of them; None where one is not known."""
        places = [self.places.get(key, -1) for key in keys]
        if min(places, default=-1) < 0:
            return None
        if max(places) >= len(self.seen):
            assert self.file is not None
            self.seen = np.memmap(self.file, np.uint8, "r", shape=(len(self.places), self.seen.shape[1]))
        found = torch.from_numpy(self.seen[places, KEY:])
        sizes = [math.prod(shape) * dtype.itemsize for _, shape, dtype in self.layout]
        return {
            name: part.contiguous().view(dtype).view(len(keys), *shape)
            for (name, shape, dtype), part in zip(self.layout, found.split(sizes, dim=1), strict=True)
        }

    def write(self, keys: Sequence[bytes], answer: Mapping[str, Tensor], size: int) -> None:
        """Keeps the answers to those that are not known yet, if they fit."""
        layout = [(name, tensor.shape[1:], tensor.dtype) for name, tensor in answer.items()]
        self.layout = self.layout or layout
        if self.full or layout != self.layout or not all(_plain(tensor, size) for tensor in answer.values()):
            return
        data = torch.cat([_bytes(tensor) for tensor in answer.values()], dim=1).numpy()
        new = {key: at for at, key in enumerate(keys) if key not in self.places}
        self.full = (len(self.places) + len(new)) * (KEY + data.shape[1]) > MOST_BYTES
        if self.full:
            return
        try:
            if self.file is None:
                self._open_("w+b")
                self.seen = np.empty((0, KEY + data.shape[1]), np.uint8)
            assert self.file is not None
            rows = data[list(new.values())]
            given = np.hstack([np.frombuffer(b"".join(new), np.uint8).reshape(len(new), KEY), rows]).tobytes()
            if self.file.write(given) < len(given):
                raise OSError(errno.ENOSPC, "not all was written")
        except OSError:  # no room on the disk
            self.full = True
            return
        self.places |= {key: len(self.places) + at for at, key in enumerate(new)}


def _plain(tensor: Tensor, size: int) -> bool:
    """True for a tensor on a processor that has a row for each sample."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.ndim > 0 and len(tensor) == size > 0


def _bytes(tensor: Tensor) -> Tensor:
    """Shapes: [samples, ...] -> uint8 [samples, bytes of each]."""
    values = tensor.detach().resolve_conj().resolve_neg()
    values = torch.view_as_real(values) if values.is_complex() else values
    return values.reshape(len(values), math.prod(values.shape[1:])).contiguous().view(torch.uint8)


def _keys(inputs: Batch, size: int) -> list[bytes]:
    """What tells each sample from every other: its bytes, and what else the batch says of it."""
    beside = repr(mapped(inputs, lambda tensor: tensor[:0])).encode()
    parts = [_bytes(tensor).numpy() for tensor in leaves(inputs)]
    found = []
    for at in range(size):
        told = blake2b(beside, digest_size=KEY)
        for part in parts:
            told.update(part[at])
        found.append(told.digest())
    return found
