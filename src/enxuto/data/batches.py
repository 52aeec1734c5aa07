"""Batches as slices of tensors in memory, and the accuracy of a network on such tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from enxuto.calls import evaluating, first_tensor
from enxuto.errors import RangeError, ShapeError


class Batches:
    """Shuffled batches (x, y), in another order each time they are iterated, always the same for one seed and epoch.

    An incomplete last batch is left out (other samples each epoch), unless it is the only one.
    """

    def __init__(self, x: Tensor, y: Tensor, *, batch_size: int = 128, seed: int = 0, shift: int = 0, flip: bool = False) -> None:
        _check(x, y, batch_size)
        if not 0 <= shift < min(x.shape[-2:]):
            raise RangeError(f"shift={shift} does not fit images of {tuple(x.shape[-2:])} pixels; use 0, 1 or 2.")
        self.x, self.y = x, y
        self.batch_size = min(batch_size, len(x))
        self.seed, self.shift, self.flip = seed, shift, flip
        self.next_epoch = 0

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.next_epoch += 1
        return self.epoch(self.next_epoch - 1)

    def __fingerprint__(self) -> tuple[object, ...]:
        """What these batches are, wherever they stand: checkpoints of a training go by it."""
        return (self.x, self.y, self.batch_size, self.seed, self.shift, self.flip)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, counted from 0; does not move on to the next."""
        rng = np.random.default_rng((self.seed, number))
        order = torch.from_numpy(rng.permutation(len(self.x)))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            x = self.x[chosen]
            yield self._varied(x, rng) if self.shift or self.flip else x, self.y[chosen]

    def _varied(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Each image moved by up to `shift` pixels, its border repeated, and mirrored by the toss of a coin."""
        count, height, width = len(x), x.shape[-2], x.shape[-1]
        down, right = rng.integers(0, 2 * self.shift + 1, size=(2, count, 1))
        mirrored = rng.integers(0, 2, size=(count, 1)).astype(bool) & self.flip
        columns = np.where(mirrored, np.arange(width)[::-1], np.arange(width)) + right
        from_rows = torch.from_numpy(np.arange(height) + down)[:, None, :, None]
        from_columns = torch.from_numpy(columns)[:, None, None, :]
        padded = functional.pad(x, (self.shift,) * 4, mode="replicate")
        samples = torch.arange(count)[:, None, None, None]
        channels = torch.arange(x.shape[1])[None, :, None, None]
        return padded[samples, channels, from_rows, from_columns]


def batches(x: Tensor, y: Tensor, batch_size: int = 128, seed: int = 0, *, shift: int = 0, flip: bool = False) -> Batches:
    """Shuffled batches to train on, again and again; optionally moved by up to `shift` pixels and mirrored.

    Shapes: x [samples, channels, height, width], y [samples]; each batch the same with `batch_size` samples.
    Raises: ShapeError when x and y differ in length, RangeError for a batch size or shift that makes no sense.
    """
    return Batches(x, y, batch_size=batch_size, seed=seed, shift=shift, flip=flip)


def inputs(x: Tensor, batch_size: int = 128) -> list[Tensor]:
    """The samples in their order, without labels, cut into batches: what `Task(calibration=...)` takes.

    Raises: RangeError for a batch size below 1.
    """
    if batch_size < 1:
        raise RangeError(f"batch_size={batch_size} cuts {len(x)} samples into nothing; use 1 or more.")
    return list(torch.split(x, batch_size))


@dataclass(frozen=True, eq=False)
class Accuracy:
    """One value per sample, 1 where the highest score is that of the right class: what `Task(evaluate=...)` takes."""

    x: Tensor
    y: Tensor
    batch_size: int = 500

    def __post_init__(self) -> None:
        _check(self.x, self.y, self.batch_size)

    def __call__(self, model: nn.Module) -> Tensor:
        """Shapes: -> float32 [samples], on the CPU. Raises: ShapeError when the model gives no score per class."""
        device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), self.x.device)
        right: list[Tensor] = []
        with evaluating(model):
            for x, y in zip(inputs(self.x, self.batch_size), inputs(self.y, self.batch_size), strict=True):
                scores = first_tensor(model(x.to(device)))
                if scores.ndim != 2 or len(scores) != len(y):
                    raise ShapeError(
                        f"the model gave outputs {tuple(scores.shape)} for {len(y)} samples; "
                        f"accuracy needs one score per class, [{len(y)}, classes]."
                    )
                right.append((scores.argmax(dim=1).cpu() == y.cpu()).float())
        return torch.cat(right)


def accuracy(x: Tensor, y: Tensor, batch_size: int = 500) -> Accuracy:
    """A function that tells of each sample whether a model gets it right; its mean is the accuracy.

    Shapes: x [samples, ...], y [samples].
    Raises: ShapeError when x and y differ in length, RangeError for a batch size below 1.
    """
    return Accuracy(x, y, batch_size)


def _check(x: Tensor, y: Tensor, batch_size: int) -> None:
    if len(x) != len(y) or not len(x):
        raise ShapeError(f"x holds {len(x)} samples and y {len(y)}; give as many labels as samples, at least one.")
    if batch_size < 1:
        raise RangeError(f"batch_size={batch_size} cuts {len(x)} samples into nothing; use 1 or more.")
