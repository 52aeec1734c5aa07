"""What a batch is: tensors in nested tuples, lists and dicts, and which of their rows are samples.

The samples of a batch are the first axis of its first tensor that has one. Every other tensor of that length has a row for
each sample too; what has not (a table, a mask, a number) goes along whole. A packed sequence holds as many as were packed.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from enxuto.checks import named, whole
from enxuto.errors import ShapeError, TaskError

Part = Tensor | PackedSequence

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""Inputs of one call of the model: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""


def count(batches: Iterable[Any]) -> int | None:
    """How many batches there are, if they say so themselves."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over a stream has __len__, and raises in it
        return None


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors inside tuples, lists, dicts and dataclasses, in order."""
    for part in _parts(tree):
        yield from (part,) if isinstance(part, Tensor) else (item for item in part if isinstance(item, Tensor))


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed.

    >>> mapped({"x": (torch.ones(2), "mean")}, lambda tensor: tensor + 1)
    {'x': (tensor([2., 2.]), 'mean')}
    """

    def of(part: Part) -> Part:
        if isinstance(part, Tensor):
            return change(part)
        data = change(part.data)
        places = (None if order is None else order.to(data.device) for order in (part.sorted_indices, part.unsorted_indices))
        return PackedSequence(data, part.batch_sizes, *places)

    return _mapped(tree, of)


def unclassed(tree: Any) -> Any:
    """The same in plain tuples, lists and dicts, which torch can trace; objects of other classes stay what they are.

    >>> from collections import UserDict
    >>> unclassed([UserDict(x=1), (2, None)])
    [{'x': 1}, (2, None)]
    """
    if isinstance(tree, Mapping) or is_record(tree):
        return {name: unclassed(item) for name, item in entries(tree).items()}
    if isinstance(tree, (tuple, list)) and not isinstance(tree, Part):
        items = [unclassed(item) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    return tree


def recorded(batch: Any) -> Any:
    """The batch as autograd takes it: what was made under torch.inference_mode is copied."""
    if not any(tensor.is_inference() for tensor in leaves(batch)):
        return batch
    return mapped(batch, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def doubled(batch: Any) -> Any:
    """The batch in double precision; whole numbers stay."""
    return mapped(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments of the call that a batch stands for."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    alone = isinstance(batch, PackedSequence) or not isinstance(batch, Sequence)
    return ((batch,) if alone else tuple(batch)), {}


def batch_size(batch: Any) -> int:
    """How many samples a batch holds; 0 when none of its tensors has an axis.

    >>> batch_size(([torch.zeros(32, 10), torch.zeros(32, 3)], {"scale": torch.tensor(2.0)}))
    32
    """
    return next((_length(part) for part in _parts(batch) if _length(part)), 0)


def samples(batch: Any) -> int:
    """The same. Raises: TaskError when there is none."""
    if not (found := batch_size(batch)):
        raise TaskError("the batch holds no tensor with a batch dimension; give inputs as tensors [batch, ...].")
    return found


def rows(batch: Any, start: int, stop: int) -> Any:
    """The samples start...stop of a batch, in the same structure; its tensors are views."""
    return _chosen(batch, range(batch_size(batch))[start:stop])


def resized(batch: Any, size: int) -> Any:
    """The batch with `size` samples, repeating or leaving out some.

    Raises: ShapeError when size is no whole number of at least one; TaskError when the batch has no samples.
    """
    if not whole(size, 1):
        raise ShapeError(f"{named('batch_size', size)} is no number of samples; use 1 or more.")
    given = samples(batch)
    return batch if size == given else _chosen(batch, [row % given for row in range(size)])


def parts(batch: Any, count: int) -> list[Any]:
    """The batch in `count` parts of samples, as equal as can be; fewer where it has fewer samples."""
    given = samples(batch)
    edges = [given * part // count for part in range(count + 1)]
    return [batch] if count == 1 else [rows(batch, *edge) for edge in itertools.pairwise(edges) if edge[0] < edge[1]]


def _length(part: Part) -> int:
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])
    return len(part) if part.ndim else 0


def _chosen(batch: Any, chosen: range | list[int]) -> Any:
    size = batch_size(batch)

    def of(part: Part) -> Part:
        if not size or _length(part) != size:
            return part
        if isinstance(part, PackedSequence):
            sequences = unpack_sequence(part)
            return pack_sequence([sequences[row] for row in chosen], enforce_sorted=False)
        if isinstance(chosen, range):
            return part[chosen.start : chosen.stop]
        return part.index_select(0, torch.tensor(chosen, device=part.device))

    return _mapped(batch, of)


def _parts(tree: Any) -> Iterator[Part]:
    if isinstance(tree, Part):
        yield tree
    elif isinstance(tree, (tuple, list, Mapping)) or is_record(tree):
        for item in tree if isinstance(tree, (tuple, list)) else entries(tree).values():
            yield from _parts(item)


def is_packed(tree: Any) -> bool:
    """True where a packed sequence is among its parts."""
    return any(isinstance(part, PackedSequence) for part in _parts(tree))


def is_record(tree: Any) -> bool:
    """True for an instance of a dataclass, which some models return."""
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def entries(tree: Any) -> dict[str, Any]:
    """The items of a dict, or the fields of a dataclass, by name."""
    if isinstance(tree, Mapping):
        return {str(key): item for key, item in tree.items()}
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _another(tree: Any) -> Any:
    """A mapping of the same kind and entries, which may be changed: one that keeps them in an attribute gets its own."""
    if isinstance(tree, dict) or hasattr(tree, "__copy__"):
        return copy.copy(tree)
    return copy.deepcopy(tree, {id(item): item for item in tree.values()})


def _mapped(tree: Any, change: Callable[[Part], Part]) -> Any:
    if isinstance(tree, Part):
        return change(tree)
    if isinstance(tree, Mapping):
        made: Any = _another(tree) if isinstance(tree, MutableMapping) else dict(tree)  # a dict whose entries are attributes
        for name, item in tree.items():
            made[name] = _mapped(item, change)
        return made
    if is_record(tree):
        return dataclasses.replace(tree, **{name: _mapped(item, change) for name, item in entries(tree).items()})
    if isinstance(tree, (tuple, list)):
        items = [_mapped(item, change) for item in tree]
        return items if isinstance(tree, list) else type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return tree
