"""Which channels are zero for every input: the graph computed with "not known" (NaN) in place of the model's inputs.

A product of an unknown number and an exact zero is zero; everything else that meets an unknown number is unknown. A
channel is *live* when some weight that is not zero reads a value of it that is not zero; the others can go and no
output changes.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from enxuto.groups import shapes
from enxuto.groups.call import substituted
from enxuto.groups.ledger import Read, compact
from enxuto.groups.trace import Trace

IntArray = npt.NDArray[np.int64]
UNKNOWN = float("nan")
CONVOLUTIONS = [f"{kind}{dims}d" for kind in ("conv", "conv_transpose") for dims in (1, 2, 3)]
BILINEAR = frozenset([*CONVOLUTIONS, "linear", "matmul", "mm", "bmm"])
GATE = {
    "lstm": (4, 2),
    "gru": (3, 2),
    "rnn_tanh": (1, 0),
    "rnn_relu": (1, 0),
}  # gates, and the one that makes new content
CHOICES = ("aten.embedding.", "aten.index.")
AVERAGES = frozenset(("mean", "sum", "amax"))
MOVES = (
    *(shapes.same, shapes.turned, shapes.moved, shapes.parted, shapes.sliced, shapes.picked, shapes.joined),
    *(shapes.pixel_shuffle, shapes.channel_shuffle),
)


def live_channels(traced: Trace, channel: IntArray) -> set[int]:
    """The channels that count. Shapes: channel [labels], as `Ledger.components` gives it."""
    reads: dict[str, list[Read]] = defaultdict(list)
    for read in traced.ledger.reads:
        reads[read.source].append(read)
    tensors = {**traced.program.state_dict, **traced.program.constants}
    graph = traced.program.graph
    left = {node: len(node.users) for node in graph.nodes}
    values: dict[fx.Node, object] = {}
    live: set[int] = set()
    with torch.no_grad():
        for node in graph.nodes:
            inside: dict[str, Tensor] = {}
            values[node] = _value(node, values, traced, tensors, inside)
            for name, value in [(node.name, values[node]), *inside.items()]:
                for read in reads.pop(name, ()):
                    live |= _live(read, value, traced, tensors, channel)
            for source in node.all_input_nodes:
                left[source] -= 1
                if not left[source]:
                    values[source] = None
    for rest in reads.values():
        for read in rest:
            live |= _live(read, None, traced, tensors, channel)
    return live


def _live(read: Read, value: object, traced: Trace, tensors: Mapping[str, object], channel: IntArray) -> set[int]:
    """The channels that are not zero here and that the weight does not multiply by zero."""
    labels = compact(read.labels)[0]
    if isinstance(value, Tensor) and value.shape == read.labels.shape:
        labels = read.labels[value != 0]  # NaN differs from zero
    weight = tensors.get(read.weight.key)
    dim = read.weight.axes[read.dim]
    columns = traced.ledger.axes[read.weight.key, dim].labels
    if isinstance(weight, Tensor):
        columns = columns[(weight != 0).movedim(dim, 0).flatten(1).any(1).cpu()]
    return set(channel[np.unique(labels.numpy())].tolist()) & set(channel[columns.numpy()].tolist())


def _value(
    node: fx.Node,
    values: Mapping[fx.Node, object],
    traced: Trace,
    tensors: Mapping[str, object],
    inside: dict[str, Tensor],
) -> object:
    if node.op == "placeholder":
        name = traced.names.get(node.name) or _constant(node, traced)
        return tensors[name] if name in tensors else _unknown(node)
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source = values[node.args[0]]  # type: ignore[index]
        return source[node.args[1]] if isinstance(source, tuple | list) else _unknown(node)  # type: ignore[index]
    if not isinstance(node.target, OpOverload):
        return _unknown(node)
    if not all(_known(values[source]) for source in node.all_input_nodes):
        return _chosen(node, values) if str(node.target).startswith(CHOICES) else _unknown(node)
    args = [substituted(arg, values) for arg in node.args]
    kwargs = {key: substituted(arg, values) for key, arg in node.kwargs.items()}
    out = _computed(node, node.target, args, kwargs, inside)
    return _unknown(node) if out is None else out


def _computed(node: fx.Node, op: OpOverload, args: list[Any], kwargs: dict[str, Any], inside: dict[str, Tensor]) -> object:
    """The outputs of one call with unknown numbers among its inputs; None when nothing can be said."""
    name = op._schema.name.split("::")[-1]
    rule = shapes.SHAPES.get(name)
    if name in BILINEAR:
        return _bilinear(op, args)
    if name in GATE:
        return _recurrent(node, name, args, inside)
    if name.removesuffix("_cell") in GATE:
        return _recurrent_cell(node, name, args, inside)
    if name in ("batch_norm", "instance_norm"):
        return _norm(op, args)
    if name == "index":
        return _chosen_rows(node, args[0], len(args[1]))
    if name in ("mul", "mul_"):
        return _times(args)
    if rule in MOVES or rule is shapes.made:
        return op(*args, **kwargs)
    if rule is shapes.padded or shapes.SPATIAL.match(name) or name in AVERAGES or op is torch.ops.aten.max.dim:
        first = args[0]
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        unknown = op(first.isnan().to(first.dtype), *args[1:], **kwargs)
        out = op(first.nan_to_num(0.0), *args[1:], **kwargs)
        if isinstance(out, tuple):  # a pool that returns its indices too
            return (out[0].masked_fill(unknown[0] != 0, UNKNOWN), *(None for _ in out[1:]))
        return out.masked_fill(unknown != 0, UNKNOWN)
    if rule is shapes.gated:
        first, second = torch.chunk(args[0], 2, int(args[1]) if len(args) > 1 else -1)
        return _times([first, second.sigmoid()])
    if name == "prelu" or rule is shapes.pointwise or torch.Tag.pointwise in op.tags:
        return _pointwise(op, args, kwargs)
    return None


def _pointwise(op: OpOverload, args: list[Any], kwargs: dict[str, Any]) -> Tensor | None:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    filled = [arg.nan_to_num(1.0) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
    out = op(*filled, **kwargs)  # in place operators work on `filled`, which are copies
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    unknown = torch.zeros((), dtype=torch.bool)
    for each in tensors:
        unknown = unknown | each.isnan() if bool(each.isnan().any()) else unknown
    return out.masked_fill(unknown, UNKNOWN)


def _times(args: list[Any]) -> Tensor | None:
    first, second = (torch.as_tensor(arg) for arg in args[:2])
    if not first.is_floating_point():
        return None
    unknown = (first.isnan() & (second != 0)) | (second.isnan() & (first != 0))
    return (first.nan_to_num(0.0) * second.nan_to_num(0.0)).masked_fill(unknown, UNKNOWN)


def _bilinear(op: OpOverload, args: list[Any]) -> Tensor | None:
    """Convolutions and products: an output is known when every unknown input meets a zero weight."""
    first, second = args[0], args[1]
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    bias = args[2] if len(args) > 2 else None
    if isinstance(bias, Tensor) and bool(bias.isnan().any()):
        return None
    rest = [None if isinstance(each, Tensor) else each for each in args[2:]]
    unknown = op(first.isnan().to(first.dtype), (second != 0).to(first.dtype), *rest)
    unknown = unknown + op((first != 0).to(first.dtype), second.isnan().to(first.dtype), *rest)
    out = op(first.nan_to_num(0.0), second.nan_to_num(0.0), *args[2:])
    return out.masked_fill(unknown != 0, UNKNOWN)


def _norm(op: OpOverload, args: list[Any]) -> Tensor | None:
    first, scale = args[0], args[1]
    assert isinstance(first, Tensor)
    unknown = first.isnan()
    if args[5]:  # with the statistics of the inputs themselves
        if op._schema.name != "aten::instance_norm":
            return None
        unknown = unknown.flatten(2).any(2).view(*first.shape[:2], *[1] * (first.ndim - 2))
    out = op(first.nan_to_num(0.0), *args[1:])
    if isinstance(scale, Tensor):
        unknown = unknown & (scale != 0).view(-1, *[1] * (first.ndim - 2))
    return out.masked_fill(unknown, UNKNOWN)


def _recurrent(node: fx.Node, name: str, args: list[Any], inside: dict[str, Tensor]) -> object:
    """A hidden unit is zero for ever when it starts at zero and nothing but zeros makes its new content."""
    first, states, params = args[0], args[1], args[2]
    layers, directions = int(args[4]), 2 if args[7] else 1
    starts = [(state == 0).all(1) for state in (states if isinstance(states, Sequence) else [states])]  # [cells, hidden] each
    per_cell = len(params) // (layers * directions)
    silent = (first == 0).flatten(0, -2).all(0)
    units: list[Tensor] = []
    written: list[Tensor] = []
    for cell in range(layers * directions):
        if cell and cell % directions == 0:
            silent = torch.cat(written[-directions:])
            inside[f"{node.name}.layer{cell // directions - 1}"] = _as_values(silent)
        own = params[cell * per_cell : (cell + 1) * per_cell]
        projection = own.pop() if per_cell in (3, 5) else None
        still, out = _silent_units(name, own, projection, silent, [start[cell] for start in starts])
        units.append(still)
        written.append(out)
        inside[f"{node.name}.cell{cell}"] = _as_values(out)
        inside[f"{node.name}.cell{cell}.state"] = _as_values(still)
    shapes_out = [value.shape for value in node.meta["val"]]
    top = _as_values(torch.cat(written[-directions:])).expand(shapes_out[0])
    kept = [torch.stack([_as_values(zero) for zero in zeros])[:, None, :] for zeros in (written, units)]
    return (top, *(values.expand(shape) for values, shape in zip(kept, shapes_out[1:], strict=False)))


def _silent_units(
    name: str, params: Sequence[Tensor], projection: Tensor | None, silent: Tensor, starts: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Which hidden units of one cell stay zero, and which of the numbers it hands on: the same ones without a projection.

    All are taken for zero first, and those that something wakes are struck out until none is left to strike.
    Shapes: silent bool [in], starts (what it hands on at first, and last the units themselves) bool [hidden or projected],
    [hidden] -> bool [hidden], bool [hidden or projected].
    """
    gates, content = GATE[name.removesuffix("_cell")]
    w_ih, w_hh, *biases = (tensor.chunk(gates)[content] for tensor in params)
    still = (w_ih[:, ~silent] == 0).all(1) & starts[-1]
    for bias in biases:
        still = still & (bias == 0)
    while True:
        out = starts[0] & (still if projection is None else (projection[:, ~still] == 0).all(1))
        remaining = still & (w_hh[:, ~out] == 0).all(1)
        if bool((remaining == still).all()):
            return still, out
        still = remaining


def _recurrent_cell(node: fx.Node, name: str, args: list[Any], inside: dict[str, Tensor]) -> object:
    """One step: what was zero and gets no new content stays zero."""
    states = args[1] if isinstance(args[1], Sequence) else [args[1]]
    before = torch.stack([(state == 0).flatten(0, -2).all(0) for state in states]).all(0)
    gates, content = GATE[name.removesuffix("_cell")]
    inputs = (args[0] == 0).flatten(0, -2).all(0)
    w_ih, w_hh, *biases = (tensor.chunk(gates)[content] for tensor in args[2:] if isinstance(tensor, Tensor))
    still = (w_ih[:, ~inputs] == 0).all(1) & (w_hh[:, ~before] == 0).all(1)
    if gates > 1:
        still = still & before
    for bias in biases:
        still = still & (bias == 0)
    inside[f"{node.name}.cell0"] = _as_values(before)
    values = _as_values(still)
    meta = node.meta["val"]
    return values.expand(meta.shape) if isinstance(meta, Tensor) else tuple(values.expand(each.shape) for each in meta)


def _as_values(zero: Tensor) -> Tensor:
    return torch.zeros(zero.shape).masked_fill(~zero, UNKNOWN)


def _chosen(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    """Rows of an embedding, or of any tensor, chosen by numbers that are not known."""
    indices = node.args[1]
    return _chosen_rows(node, values[node.args[0]], len(indices) if isinstance(indices, Sequence) else 1)  # type: ignore[index]


def _chosen_rows(node: fx.Node, source: object, dims: int) -> object:
    """Whatever the indices of the first `dims` axes, a column of zeros gives zeros."""
    shape = getattr(node.meta.get("val"), "shape", None)
    if not isinstance(source, Tensor) or not source.is_floating_point() or shape is None or dims >= source.ndim:
        return _unknown(node)
    return _as_values((source == 0).flatten(0, dims - 1).all(0)).to(source.dtype).expand(shape)


def _constant(node: fx.Node, traced: Trace) -> str:
    signature = traced.program.graph_signature
    return signature.inputs_to_lifted_tensor_constants.get(node.name) or signature.inputs_to_buffers.get(node.name, "")


def _known(value: object) -> bool:
    """True for something an operator can be run on; integers that depend on the inputs are not."""
    return value is not None


def _unknown(node: fx.Node) -> object:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return torch.full(value.shape, UNKNOWN, dtype=value.dtype) if value.is_floating_point() else None
    if isinstance(value, list | tuple):
        return tuple(
            torch.full(each.shape, UNKNOWN, dtype=each.dtype) if isinstance(each, Tensor) and each.is_floating_point() else None
            for each in value
        )
    return None
