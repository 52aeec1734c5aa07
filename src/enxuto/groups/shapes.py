"""Rules for operators without weights: what happens to the labels when an activation is reshaped, added, pooled, mixed.

A rule takes a `Call` and returns the labels of its outputs. What only moves elements is run on the labels themselves,
so a permute and a flatten are exact. After each rule the channels of an activation lie along one dimension at most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from enxuto.groups.call import Call, fixed
from enxuto.groups.ledger import ADAPTS, Value, Weight, along, compact, line_of, squash, varying

Rule = Callable[[Call], Value]


def same(call: Call) -> Value:
    """Each element stays where it is: dropout, clone, a change of dtype."""
    value = call.arguments.get("self", call.arguments.get("input"))
    if isinstance(value, Weight):
        return value
    labels = call.as_labels(value)
    return call.result(*(labels for _ in call.shapes))


def turned(call: Call) -> Value:
    """t, transpose, permute: a weight stays a weight."""
    value = call.arguments["self"]
    if not isinstance(value, Weight):
        return call.run()
    order = call.op(*(torch.empty(value.shape, device="meta"), *list(call.arguments.values())[1:]))
    probe = torch.arange(len(value.shape))
    if call.name == "permute":
        moved = [int(probe[dim]) for dim in _dims(call.arguments["dims"], len(value.shape))]
    else:
        first, second = (call.integer("dim0"), call.integer("dim1", 1)) if call.name != "t" else (0, len(value.shape) - 1)
        moved = probe.transpose(0, 0).tolist()
        moved[first], moved[second] = moved[second], moved[first]
    return Weight(value.key, tuple(order.shape), tuple(value.axes[dim] for dim in moved))


def moved(call: Call) -> Value:
    """Elements change places only: the operator runs on the labels; channels split over two dimensions are coupled."""
    before = [len(varying(labels)) for labels in call.tensors()]
    if call.name in ("view", "_unsafe_view"):
        out: Value = squash(call.labels("self").reshape(call.shape))
    else:
        out = call.run()
    if max(before, default=0) > 1:
        return out  # a raw parameter: its elements are told apart until an activation meets them
    return tuple(_rectangular(call, each) for each in out) if isinstance(out, tuple) else _rectangular(call, out)


def _rectangular(call: Call, labels: Value, carrier: int | None = None) -> Tensor:
    """The labels with their channels along one dimension: what lies along the others is said to be the same channel."""
    assert isinstance(labels, Tensor)
    dims = varying(labels)
    if len(dims) <= 1:
        return labels
    keep = max(dims, key=lambda dim: (labels.shape[dim], dim)) if carrier is None else carrier % labels.ndim
    first = compact(labels)[0].movedim(keep, -1).reshape(-1, labels.shape[keep])
    call.ledger.unify_rows(first)
    return along(first[0], labels.shape, keep)


def pixel_shuffle(call: Call) -> Value:
    """The r x r channels that make one new channel are cut together."""
    return _rectangular(call, call.run(), carrier=-3)


def channel_shuffle(call: Call) -> Value:
    """Every block of channels loses the same ones."""
    labels = call.labels("self")
    line = line_of(labels, 1)
    if line is None:
        return call.freeze_all("channels that do not lie along dimension 1 are shuffled")
    groups = call.integer("groups", 1)
    call.ledger.unify_rows(line.view(groups, -1))
    return along(line.view(groups, -1).t().flatten(), call.shape, 1)


def parted(call: Call) -> Value:
    """chunk, split: parts of the same size lose the same channels, whatever the sizes were computed from."""
    labels, dim = call.labels("self"), call.integer("dim")
    if varying(labels) == [dim % labels.ndim]:
        parts = [shape[dim] for shape in call.shapes]
        if len(set(parts)) > 1:
            return call.freeze_all(f"channels are split into unequal parts {parts}")
        line = line_of(labels, dim)
        assert line is not None
        call.ledger.unify_rows(line.view(len(parts), -1))
    return call.run()


def sliced(call: Call) -> Value:
    """A slice of the channels must be an even part of them; those parts then lose the same channels."""
    labels, dim = call.labels("self"), call.integer("dim")
    line = line_of(labels, dim)
    if len(varying(labels)) == 1 and line is not None and call.shape[dim] != len(line):
        length = call.shape[dim]
        start = call.arguments.get("start") or 0
        if call.integer("step", 1) != 1 or len(line) % length or not isinstance(start, int) or start % length:
            return call.freeze_all("some channels are picked by their numbers")
        call.ledger.unify_rows(line.view(-1, length))
    return call.run()


def picked(call: Call) -> Value:
    """select, unbind: one index of a dimension; along the channels this names a channel by its number."""
    labels, dim = call.labels("self"), call.integer("dim")
    if labels.shape[dim] > 1 and varying(labels) == [dim % labels.ndim]:
        return call.freeze_all("some channels are picked by their numbers")
    return call.run()


def indexed(call: Call) -> Value:
    """index, index_select, gather: the numbers are not known, so nothing may vary along the dimensions they go over."""
    labels = call.labels("self")
    if call.name == "index":
        given = call.arguments["indices"]
        assert isinstance(given, Sequence)
        dims = [dim for dim, index in enumerate(given) if index is not None]
        zeros: object = [None if i is None else torch.zeros_like(call.as_labels(i)) for i in given]
    else:
        dims = [call.integer("dim")]
        zeros = torch.zeros_like(call.labels("index"))
    if any(dim % labels.ndim in varying(labels) for dim in dims):
        return call.freeze_all("some channels are picked by their numbers")
    return call.run(**{"indices" if call.name == "index" else "index": zeros})


def joined(call: Call) -> Value:
    """cat, stack: joined along the channels they stay apart, joined along another dimension they are the same."""
    parts = [labels for labels in call.tensors() if labels.numel() or labels.ndim > 1]
    if call.name == "stack":
        parts = [labels.unsqueeze(call.integer("dim")) for labels in parts]
    dim = call.integer("dim") % parts[0].ndim
    others = {other for labels in parts if len(varying(labels)) == 1 for other in varying(labels) if other != dim}
    if not others:
        return squash(torch.cat(parts, dim))
    if len(others) > 1 or any(varying(labels) == [dim] for labels in parts):
        return call.freeze_all("channels that lie along different dimensions are joined")
    lines = [labels.narrow(dim, 0, 1) for labels in parts if len(varying(labels)) <= 1]
    for labels in parts:
        for index in range(labels.shape[dim] if len(varying(labels)) > 1 else 1):
            call.ledger.unify(lines[0], labels.narrow(dim, index, 1), "it is joined with what cannot be cut", call.where)
    first = next((line for line in lines if not bool((line == ADAPTS).any())), lines[0])
    return first.expand(call.shape)


def pointwise(call: Call) -> Value:
    """Operands that meet element by element hold the same channels; a single channel that is spread over many stays."""
    parts = call.tensors()
    shape = np.broadcast_shapes(*(labels.shape for labels in parts), call.shape)
    views = [labels.expand(shape) for labels in parts]
    carriers = {dim for view in views if len(varying(view)) == 1 for dim in varying(view)}
    if len(carriers) > 1:
        return call.freeze_all("channels that lie along different dimensions meet")
    carrier = next(iter(carriers), None)
    meeting = []
    for labels, view in zip(parts, views, strict=True):
        if carrier is not None and shape[carrier] > 1 and _size(labels, len(shape), carrier) == 1:
            call.ledger.freeze(labels, "one channel is spread over many", call.where)
        else:
            meeting.append(view)
    if not meeting:
        return call.fixed()
    main = next((view for view in meeting if varying(view) == [carrier]), meeting[0])
    why = "it meets, element by element, what cannot be cut"
    for view in meeting:
        if view is not main:
            call.ledger.unify(main, view, why, call.where)
            if bool((compact(main)[0] == ADAPTS).all()):
                main = view
    return call.result(*(main.expand(each) for each in call.shapes))


def _size(labels: Tensor, ndim: int, dim: int) -> int:
    own = dim - (ndim - labels.ndim)
    return labels.shape[own] if own >= 0 else 1


def spatial(call: Call) -> Value:
    """Pools, interpolation, padding that works inside each channel: channels pass, positions change."""
    labels = call.labels("self" if "self" in call.arguments else "input")
    count = int(re.findall(r"([123])d", call.name)[0])
    if any(dim >= labels.ndim - count for dim in varying(labels)):
        return call.freeze_all(f"{call.name} works across the channels")
    for dim in range(labels.ndim - count, labels.ndim):
        labels = labels.narrow(dim, 0, 1)
    return call.result(*(labels.expand(shape) for shape in call.shapes))


def padded(call: Call) -> Value:
    """Channels that padding adds cannot be cut: how many there are is written as a number."""
    labels = call.labels("self")
    pad = [int(p) for p in call.arguments["pad"]]  # type: ignore[attr-defined]
    reach = {labels.ndim - 1 - i // 2 for i, p in enumerate(pad) if p}
    if reach & set(varying(labels)):
        if call.arguments.get("mode", "constant") != "constant":
            return call.freeze_all("padding repeats some of the channels")
        return squash(torch.nn.functional.pad(labels.contiguous(), pad))
    for dim in reach:
        labels = labels.narrow(dim, 0, 1)
    return labels.expand(call.shape)


def reduced(call: Call) -> Value:
    """Sums, means and norms: over positions the channels pass, over channels they are mixed."""
    labels = call.labels("self" if "self" in call.arguments else "input")
    dims = _dims(call.arguments.get("dim"), labels.ndim)
    if set(dims) & set(varying(labels)):
        return call.freeze_all(f"{call.name} works across the channels")
    kept = call.arguments.get("keepdim") is True
    for dim in sorted(dims, reverse=True):
        labels = labels.narrow(dim, 0, 1) if kept else labels.select(dim, 0)
    return call.result(*(labels.expand(shape) for shape in call.shapes))


def scanned(call: Call) -> Value:
    """softmax, cumsum and the like: the shape stays; across channels they mix."""
    labels = call.labels("self" if "self" in call.arguments else "input")
    if set(_dims(call.arguments.get("dim"), labels.ndim)) & set(varying(labels)):
        return call.freeze_all(f"{call.name} works across the channels")
    return call.result(*(labels.expand(shape) for shape in call.shapes))


def gated(call: Call) -> Value:
    """glu: the halves lose the same channels."""
    labels, dim = call.labels("self"), call.integer("dim", -1)
    if varying(labels) == [dim % labels.ndim]:
        line = line_of(labels, dim)
        assert line is not None
        call.ledger.unify_rows(line.view(2, -1))
    return squash(labels.narrow(dim, 0, labels.shape[dim] // 2))


def made(call: Call) -> Value:
    """zeros, ones, zeros_like: as many channels as it takes."""
    return call.result(*(torch.full((), ADAPTS, dtype=torch.int64).expand(shape) for shape in call.shapes))


def unrelated(call: Call) -> Value:
    """Values that are no channels and need none: arange, a mask."""
    return call.result(*(fixed(shape) for shape in call.shapes))


def _dims(value: object, ndim: int) -> list[int]:
    if isinstance(value, int):
        return [value % max(ndim, 1)]
    if isinstance(value, list | tuple) and value:
        return [dim % ndim for dim in value]
    return list(range(ndim))


def named(text: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for each of the operators that are named."""
    return dict.fromkeys(text.split(), rule)


SHAPES: dict[str, Rule] = {
    **named("dropout dropout_ feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ clone contiguous", same),
    **named("detach detach_ to _to_copy type_as alias lift_fresh lift_fresh_copy float double half", same),
    **named("t transpose permute", turned),
    **named("view _unsafe_view reshape view_as reshape_as flatten unflatten squeeze unsqueeze expand expand_as", moved),
    **named("repeat repeat_interleave tile flip roll movedim swapaxes numpy_T mT narrow_copy pixel_unshuffle", moved),
    **named("chunk split split_with_sizes tensor_split", parted),
    **named("slice narrow", sliced),
    **named("select unbind", picked),
    **named("index index_select gather", indexed),
    **named("cat concat concatenate stack", joined),
    **named("pad constant_pad_nd", padded),
    **named("mean sum amax amin max min var std norm linalg_vector_norm prod logsumexp all any argmax argmin", reduced),
    **named("softmax log_softmax cumsum cumprod _softmax _log_softmax sort", scanned),
    **named("zeros ones full empty zeros_like ones_like full_like empty_like", made),
    **named("new_zeros new_ones new_full new_empty", made),
    **named("arange linspace eye rand randn rand_like randn_like scalar_tensor tril_indices triu_indices", unrelated),
    **named("hardswish hardswish_ softmax2d silu relu6 relu6_ selu selu_ celu rrelu _prelu_kernel threshold", pointwise),
    **named("clamp clamp_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ logit log_sigmoid softsign tanhshrink", pointwise),
    "pixel_shuffle": pixel_shuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "glu": gated,
}
SPATIAL = re.compile(
    r"(avg_pool|max_pool|lp_pool|adaptive_|upsample_|_upsample_|reflection_pad|replication_pad|dropout)\w*[123]d"
)


def rule_for(call: Call) -> Rule | None:
    """The rule of an operator without weights, or None when there is none."""
    if call.name in SHAPES:
        return SHAPES[call.name]
    if SPATIAL.match(call.name):
        return spatial
    if torch.Tag.pointwise in call.op.tags:
        return pointwise
    return None
