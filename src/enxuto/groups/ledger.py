"""The book of channel numbers: which channels are the same, which may not be cut, and why.

Every activation carries *labels*: an integer tensor of its own shape whose elements say to which channel they belong.
A dimension along which all labels are equal is kept with stride 0, so labels cost almost no memory and
`varying` can tell at once which dimension holds the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FIXED = 0  # an element whose channel may not be cut, the model's inputs for example
ADAPTS = -1  # an element made in forward for any number of channels, as zeros_like makes it
LARGEST_RAW = 2**20  # a parameter of more elements than this that no layer reads as a weight is not followed


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, perhaps transposed: dimension i of this view is dimension `axes[i]` of the tensor."""

    key: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


@dataclass
class Axis:
    """One dimension of one tensor of the model: the label of each index, who writes channels with it, who reads them."""

    labels: Tensor
    writers: list[str] = field(default_factory=list)
    reads: bool = False

    @property
    def writes(self) -> bool:
        """Whether the tensor makes values of these channels."""
        return bool(self.writers)


@dataclass
class Read:
    """A weight sums over the channels of the activation `source` along its dimension `dim`; `labels` are its labels."""

    source: str
    labels: Tensor
    weight: Weight
    dim: int


@dataclass
class Ledger:
    """Hands out labels, collects which are the same and which are frozen; `components` settles it."""

    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    reasons: list[tuple[npt.NDArray[np.int64], str]] = field(default_factory=list)
    count: int = 1
    _left: list[npt.NDArray[np.int64]] = field(default_factory=list)
    _right: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """New labels [count]."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def axis(self, weight: Weight, dim: int, *, writer: str | None = None, reads: bool = False) -> Tensor:
        """The labels along one dimension of a weight, the same at every call. Shapes: [size of the dimension].

        `writer` is the path of the module that makes channels with it.
        """
        key = (weight.key, weight.axes[dim])
        if key not in self.axes:
            self.axes[key] = Axis(self.fresh(weight.shape[dim]))
        if writer is not None and writer not in self.axes[key].writers:
            self.axes[key].writers.append(writer)
        self.axes[key].reads |= reads
        return self.axes[key].labels

    def elements(self, weight: Weight, where: str) -> Tensor:
        """Labels for a parameter that is used as an activation: one for each element, unless it is a vector."""
        long = [dim for dim, size in enumerate(weight.shape) if size > 1]
        if len(long) <= 1:
            dim = long[0] if long else 0
            return along(self.axis(weight, dim), weight.shape, dim) if weight.shape else torch.zeros((), dtype=torch.int64)
        if int(np.prod(weight.shape)) > LARGEST_RAW:
            for dim in range(len(weight.shape)):
                self.freeze(self.axis(weight, dim), f"'{weight.key}' is used without a layer around it", where)
            return torch.zeros((), dtype=torch.int64).expand(weight.shape)
        if weight.key not in self.raw:
            whole = [weight.shape[weight.axes.index(dim)] for dim in range(len(weight.axes))]
            self.raw[weight.key] = self.fresh(int(np.prod(whole))).view(whole)
        return self.raw[weight.key].permute(weight.axes)

    def unify(self, first: Tensor, second: Tensor, why: str, where: str) -> None:
        """Says that labels are pairwise, after broadcasting, the same channel; one that meets FIXED is frozen."""
        shape = np.broadcast_shapes(first.shape, second.shape)
        first, second = compact(first.expand(shape), second.expand(shape))
        first, second = first.flatten(), second.flatten()
        both = (first > 0) & (second > 0) & (first != second)
        if bool(both.any()):
            self._left.append(first[both].numpy())
            self._right.append(second[both].numpy())
        self.freeze(first[(first > 0) & (second == FIXED)], why, where)
        self.freeze(second[(second > 0) & (first == FIXED)], why, where)

    def unify_rows(self, labels: Tensor) -> None:
        """Says that all rows of a matrix of labels [rows, columns] are the same channels."""
        for row in labels[1:]:
            self.unify(labels[0], row, "", "")

    def freeze(self, labels: Tensor, why: str, where: str) -> None:
        """Says that these channels cannot be cut, and why."""
        ids = np.unique(compact(labels)[0].numpy())
        if (ids > 0).any():
            self.reasons.append((ids[ids > 0], f"{why} (at '{where}')" if where else why))

    def components(self) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
        """The channel each label means [labels], and the first reason of each channel that is frozen."""
        left, right = np.concatenate([[0], *self._left]), np.concatenate([[0], *self._right])
        from scipy.sparse import coo_matrix  # half a second that `import enxuto` does without
        from scipy.sparse.csgraph import connected_components

        graph = coo_matrix((np.ones(len(left), dtype=bool), (left, right)), shape=(self.count, self.count))
        component = connected_components(graph, directed=False)[1].astype(np.int64)
        frozen: dict[int, str] = {}
        for ids, why in self.reasons:
            for channel in np.unique(component[ids]):
                frozen.setdefault(int(channel), why)
        return component, frozen


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which labels differ."""
    return [dim for dim in range(labels.ndim) if labels.shape[dim] > 1 and labels.stride(dim) != 0]


def squash(labels: Tensor) -> Tensor:
    """The same labels with stride 0 along every dimension along which they are equal."""
    shape = labels.shape
    for dim in varying(labels):
        first = labels.narrow(dim, 0, 1)
        if bool((labels == first).all()):
            labels = first.expand(shape)
    return labels


def compact(*labels: Tensor) -> list[Tensor]:
    """Labels of one shape, all cut to one index along the dimensions where none of them varies."""
    kept = {dim for each in labels for dim in varying(each)}
    result = list(labels)
    for dim in range(labels[0].ndim):
        if dim not in kept and labels[0].shape[dim] > 1:
            result = [each.narrow(dim, 0, 1) for each in result]
    return result


def along(line: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Labels of the given shape that vary along one dimension only. Shapes: line [shape[dim]]."""
    view = [1] * len(shape)
    view[dim] = -1
    return line.view(view).expand(tuple(shape))


def line_of(labels: Tensor, dim: int) -> Tensor | None:
    """The labels along one dimension, or None when they vary along another one. Shapes: -> [labels.shape[dim]]."""
    if any(other != dim % labels.ndim for other in varying(labels)):
        return None
    return labels.movedim(dim, -1)[(0,) * (labels.ndim - 1)]


Value = Tensor | Weight | tuple["Value", ...] | None
"""What a node of the traced graph stands for: labels, a weight of the model, several values, or nothing of interest."""

Arguments = Mapping[str, object]
