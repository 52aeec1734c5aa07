"""The table of the reference networks: a name, and what builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from enxuto.errors import TaskError
from enxuto.zoo.lenet import LeNet5, LeNet300100
from enxuto.zoo.mobilenet import MobileNetV2
from enxuto.zoo.recurrent import GRUClassifier, LSTMClassifier
from enxuto.zoo.resnet import ResNet
from enxuto.zoo.transformer import TransformerEncoder

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet-300-100": LeNet300100,
    "lenet-5": LeNet5,
    "resnet-8": partial(ResNet, depth_per_stage=1, stem_stride=2),
    "resnet-20": partial(ResNet, depth_per_stage=3),
    "mobilenet-v2": MobileNetV2,
    "transformer": TransformerEncoder,
    "gru": GRUClassifier,
    "lstm": LSTMClassifier,
}
NAMES = tuple(NETWORKS)


def build(name: str, **sizes: object) -> nn.Module:
    """A new network by its name, with random weights from torch's own generator.

    `sizes` are the arguments of its class. All take `in_channels`, `classes` and `image_size`; the last is ignored by
    the networks that take an image of any size (resnet-8, resnet-20, mobilenet-v2).
    Raises: TaskError for an unknown name or argument.
    >>> build("lenet-5", image_size=8).fc2
    Linear(in_features=500, out_features=10, bias=True)
    """
    if name not in NETWORKS:
        raise TaskError(f"network {name!r} is not in the zoo; use one of {', '.join(NAMES)}.")
    network = NETWORKS[name]
    accepted = inspect.signature(network).parameters
    unknown = [size for size in sizes if size not in accepted and size != "image_size"]
    if unknown:
        raise TaskError(f"{unknown[0]}={sizes[unknown[0]]!r} is no argument of {name}; it takes {', '.join(accepted)}.")
    return network(**{size: value for size, value in sizes.items() if size in accepted})
