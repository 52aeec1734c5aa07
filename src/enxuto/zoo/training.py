"""Trains the reference networks, once: what the demo and the benchmarks compress. Users train in loops of their own."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from enxuto.data import Batches, Dataset, batches
from enxuto.errors import RangeError, TaskError
from enxuto.files import writable_folder, write_bytes
from enxuto.zoo.networks import build

Progress = Callable[[int, int, str], None]
"""Called after every batch with what is done, of how much, and a few words."""

WARM_UP = 0.2  # of all batches, while the learning rate rises; afterwards it falls to zero along a cosine
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a kind of network is trained; the learning rate is the highest of the schedule."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    batch_size: int = 128
    channels_last: bool = False  # the layout in which convolutions are faster


ADAMW = Training()
SGD = Training(optimizer="sgd", learning_rate=0.2, weight_decay=5e-4, channels_last=True)
TRAININGS: Mapping[str, Training] = {"resnet-8": SGD, "resnet-20": SGD, "mobilenet-v2": SGD}
"""The convolutional networks with batch norm; all others train with ADAMW."""


def train(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    learning_rate: float | None = None,
    seed: int = 0,
    training: Training = ADAMW,
    progress: Progress | None = None,
) -> nn.Module:
    """A trained copy of the model, in eval mode; the same seed gives the same weights on the same machine.

    `learning_rate` is that of `training` unless given. The epochs are those of `batches` from 0 on.
    Raises: RangeError when epochs or the learning rate are not positive, TaskError when training diverges.
    """
    peak = training.learning_rate if learning_rate is None else learning_rate
    if epochs < 1 or not 0 < peak < math.inf:
        raise RangeError(f"epochs={epochs}, learning_rate={peak} train nothing; both must be positive.")
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    student = copy.deepcopy(model).train()
    student.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = _optimizer(student, training)
    total = epochs * len(batches)
    done, loss = 0, torch.tensor(0.0)
    with _seeded(seed):
        for epoch in range(epochs):
            for x, y in batches.epoch(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = peak * one_cycle(done / total)
                optimizer.zero_grad(set_to_none=True)
                scores = student(x.contiguous(memory_format=layout))
                loss = functional.cross_entropy(scores, y, label_smoothing=training.label_smoothing)
                loss.backward()
                optimizer.step()
                done += 1
                if progress is not None:
                    progress(done, total, f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}")
            if not bool(torch.isfinite(loss)):
                raise TaskError(
                    f"training diverged in epoch {epoch + 1} of {epochs}; learning_rate={peak} is too high, halve it."
                )
    student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return student.eval()


def one_cycle(position: float) -> float:
    """The learning rate as a part of its peak: up along a line, down along a cosine.

    Source: Smith, Topin 2018, Super-Convergence. Deviation: starts from 4 % and ends at zero; momentum stays.
    >>> one_cycle(0.0), one_cycle(WARM_UP), round(one_cycle(0.6), 3)
    (0.04, 1.0, 0.5)
    """
    if position < WARM_UP:
        return 0.04 + 0.96 * position / WARM_UP
    return (1 + math.cos(math.pi * (position - WARM_UP) / (1 - WARM_UP))) / 2


def trained(
    name: str,
    dataset: Dataset,
    *,
    epochs: int,
    seed: int = 0,
    cache: Path,
    sizes: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """The network of that name (see `build`), trained on the data set; the second time it comes from `cache`.

    Its sizes are those of the data set; `sizes` gives further arguments. A cached file that is damaged is made anew.
    Raises: TaskError for an unknown network, RangeError for epochs below 1, OutputError when `cache` cannot be written.
    """
    training = TRAININGS.get(name, ADAMW)
    fitting: dict[str, object] = {
        "in_channels": dataset.in_channels,
        "image_size": dataset.image_size,
        "classes": dataset.classes,
        **(sizes or {}),
    }
    with _seeded(seed):
        model = build(name, **fitting)
    key = _key(name, fitting, asdict(training), epochs, seed, _fingerprint(dataset))
    path = writable_folder(cache) / f"{name}-{dataset.name}-{key}.safetensors"
    if path.is_file():
        if _restore_(model, path):
            return model.eval()
        _log.warning("'%s' is damaged; the network is trained again and the file replaced.", path)
    data = batches(dataset.train_x, dataset.train_y, training.batch_size, seed)
    model = train(model, data, epochs=epochs, seed=seed, training=training, progress=progress)
    tensors = {path: tensor.contiguous() for path, tensor in model.state_dict().items()}
    write_bytes(path, save_tensors(tensors, {"sha256": _digest(tensors)}))
    return model


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices and filters only: norms and biases have one dimension."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's own generator, which layers draw from, set to the seed; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _restore_(model: nn.Module, path: Path) -> bool:
    """Loads the tensors of a cached file into the model; False, and nothing changed, when the file is damaged."""
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
        with safetensors.safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError):
        return False
    wanted = {key: (tensor.shape, tensor.dtype) for key, tensor in model.state_dict().items()}
    found = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
    if wanted != found or digest != _digest(tensors):
        return False
    model.load_state_dict(tensors)
    return True


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum over names and values, which safetensors files do not have."""
    sha = hashlib.sha256()
    for key in sorted(tensors):
        sha.update(key.encode())
        sha.update(tensors[key].numpy().tobytes())
    return sha.hexdigest()


def _fingerprint(dataset: Dataset) -> str:
    """Tells training data apart, also the same data split with another seed: all labels and every 50th image."""
    sha = hashlib.sha256(repr(tuple(dataset.train_x.shape)).encode())
    sha.update(dataset.train_y.numpy().tobytes())
    sha.update(dataset.train_x[::50].numpy().tobytes())
    return sha.hexdigest()


def _key(*parts: object) -> str:
    """Twelve hexadecimal digits that differ when any of the parts does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:12]
