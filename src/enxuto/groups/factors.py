"""Rules for factors: where a positive number for each channel can be multiplied in, and where it must be divided out again.

The trace is that of channel pruning, and so are the rules for what only moves elements. A channel whose factor nobody takes out
again exactly is frozen: it has the factor 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from enxuto.groups import homogeneous, shapes
from enxuto.groups.call import Call, fixed
from enxuto.groups.effects import Norm, touch
from enxuto.groups.ledger import Value, Weight, along, line_of, squash, varying
from enxuto.groups.shapes import Rule, named

COMPUTED = "its weight is computed in forward"
ELSEWHERE = "it works along a dimension that holds no channels"
MOVES = (shapes.moved, shapes.parted, shapes.sliced, shapes.picked)
MIXED = "a product of two activations mixes the channels"


def rule_for(call: Call) -> Rule | None:
    """The rule of an operator, or None when there is none."""
    if call.name in RULES:
        return RULES[call.name]
    if shapes.SPATIAL.match(call.name):
        return shapes.spatial
    if torch.Tag.pointwise in call.op.tags:
        return homogeneous.pointwise
    return None


def linear(call: Call) -> Value:
    """linear: rows write, columns read."""
    return _product(call, "input", call.arguments["weight"], out_dim=0, bias="bias")


def matmul(call: Call) -> Value:
    """matmul, mm, bmm, addmm: with a weight it is a linear layer; else the columns of the second factor pass."""
    first, second, weight = call.factors()
    if weight is not None:
        return _product(call, first, weight, out_dim=1, bias="self" if call.name == "addmm" else "")
    if call.name == "addmm":
        return call.freeze_all(MIXED)
    return _mixed(call, [call.labels(first)], call.labels(second))


def attention(call: Call) -> Value:
    """Queries and keys meet in a softmax; the channels of the values pass."""
    others = [call.labels(name) for name in ("query", "key")]
    return _mixed(call, others, call.labels("value"))


def _mixed(call: Call, others: Sequence[Tensor], values: Tensor) -> Value:
    """Rows of `values` are added with weights that `others` give."""
    for labels in others:
        call.ledger.freeze(labels, MIXED, call.where)
    if values.ndim < 2 or len(call.shape) != values.ndim or values.ndim - 2 in varying(values):
        call.ledger.freeze(values, MIXED, call.where)
        return call.fixed()
    row = values.narrow(-2, 0, 1)
    if any(a not in (1, b) for a, b in zip(row.shape, call.shape, strict=True)):
        return call.freeze_all("heads that are shared cannot be followed")
    return call.result(row.expand(call.shape), *(fixed(shape) for shape in call.shapes[1:]))


def _product(call: Call, data: str, weight: object, *, out_dim: int, bias: str) -> Value:
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    line = line_of(call.labels(data), -1)
    if line is None:
        call.ledger.freeze(call.labels(data), ELSEWHERE, call.where)
        line = fixed((weight.shape[1 - out_dim],))
    touch(call, weight, 1 - out_dim, line, -1)
    out = call.ledger.fresh(weight.shape[out_dim])
    touch(call, weight, out_dim, out, 1)
    _bias(call, bias, out)
    return along(out, call.shape, len(call.shape) - 1)


def convolution(call: Call) -> Value:
    """conv1d, conv2d, conv3d; a depthwise row reads one channel and writes another."""
    weight, labels = call.arguments["weight"], call.labels("input")
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    channel = labels.ndim - len(weight.shape) + 1
    line, groups, per_group = line_of(labels, channel), call.integer("groups", 1), weight.shape[1]
    if line is None:
        call.ledger.freeze(labels, ELSEWHERE, call.where)
        line = fixed((groups * per_group,))
    if groups > 1 and per_group == 1:
        touch(call, weight, 0, line.repeat_interleave(weight.shape[0] // groups), -1)
    else:
        call.ledger.unify_rows(line.reshape(groups, per_group))
        touch(call, weight, 1, line[:per_group], -1)
    out = call.ledger.fresh(weight.shape[0])
    touch(call, weight, 0, out, 1)
    _bias(call, "bias", out)
    return along(out, call.shape, channel)


def transposed(call: Call) -> Value:
    """conv_transpose1d, 2d, 3d: rows read, columns write, the same ones in every group."""
    weight, labels = call.arguments["weight"], call.labels("input")
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    channel = labels.ndim - len(weight.shape) + 1
    line, groups = line_of(labels, channel), call.integer("groups", 1)
    if line is None:
        call.ledger.freeze(labels, ELSEWHERE, call.where)
        line = fixed((weight.shape[0],))
    touch(call, weight, 0, line, -1)
    if weight.shape[1] == 1 and weight.shape[0] == groups:
        out = call.ledger.fresh(groups)
        touch(call, weight, 0, out, 1)
    else:
        columns = call.ledger.fresh(weight.shape[1])
        touch(call, weight, 1, columns, 1)
        out = columns.repeat(groups)
    _bias(call, "bias", out)
    return along(out, call.shape, channel)


def batch_norm(call: Call) -> Value:
    """Its scale and shift write; its statistics take in what the channels were multiplied by, and its scale answers."""
    given, weight = call.labels("input"), call.arguments["weight"]
    line = line_of(given, 1)
    mean, variance = call.arguments["running_mean"], call.arguments["running_var"]
    if not isinstance(weight, Weight):
        return call.freeze_all("a norm without a scale of its own")
    out = call.ledger.fresh(weight.shape[0])
    touch(call, weight, 0, out, 1)
    _bias(call, "bias", out)
    if line is None or call.arguments["training"] or not (isinstance(mean, Weight) and isinstance(variance, Weight)):
        call.ledger.freeze(given, "a norm that keeps no statistics reads it", call.where)
    else:
        eps = call.arguments["eps"]
        assert isinstance(eps, float)
        touch(call, mean, 0, line, 1)
        touch(call, variance, 0, line, 2)
        touch(call, weight, 0, line, -1, Norm(variance.key, eps))
    return along(out, call.shape, 1)


def norm(call: Call) -> Value:
    """layer_norm, rms_norm, group_norm, instance_norm: what goes in is divided by its own spread; scale and shift write."""
    call.ledger.freeze(call.labels("input"), f"{call.name.replace('_', ' ')} reads it", call.where)
    weight = call.arguments.get("weight")
    if not isinstance(weight, Weight) or len(weight.shape) != 1:
        return call.fixed()
    out = call.ledger.fresh(weight.shape[0])
    touch(call, weight, 0, out, 1)
    _bias(call, "bias", out)
    return along(out, call.shape, len(call.shape) - 1 if call.name in ("layer_norm", "rms_norm") else 1)


def prelu(call: Call) -> Value:
    """Slopes stay what they are."""
    return call.labels("self")


def embedding(call: Call) -> Value:
    """The columns of the table write."""
    weight = call.arguments["weight"]
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    out = call.ledger.fresh(weight.shape[1])
    touch(call, weight, 1, out, 1)
    return call.result(along(out, call.shape, len(call.shape) - 1), *(fixed(shape) for shape in call.shapes[1:]))


def recurrent(call: Call) -> Value:
    """lstm, gru, rnn: the columns of the first layer read; what comes out is bounded."""
    given, line = call.arguments["params"], line_of(call.labels("input"), -1)
    assert isinstance(given, Sequence)
    directions = 2 if call.arguments["bidirectional"] else 1
    per_cell = len(given) // (call.integer("num_layers") * directions)
    return _cells(call, [given[cell * per_cell] for cell in range(directions)], line)


def recurrent_cell(call: Call) -> Value:
    """lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell: one step of the same."""
    return _cells(call, [call.arguments["w_ih"]], line_of(call.labels("input"), -1))


def _cells(call: Call, readers: Sequence[object], line: Tensor | None) -> Value:
    weights = [each for each in readers if isinstance(each, Weight)]
    if line is None or len(weights) != len(readers):
        return call.freeze_all(COMPUTED)
    for weight in weights:
        touch(call, weight, 1, line, -1)
    states = call.arguments["hx"]
    for state in states if isinstance(states, Sequence) else [states]:
        call.ledger.freeze(call.as_labels(state), "it is a state of a recurrent layer", call.where)
    return call.fixed()


def moved(call: Call) -> Value:
    """Elements change places only. A vector of the model stays one, wherever its dimension goes."""
    value = call.arguments.get("self")
    if isinstance(value, Weight) and (view := _vector(value, call.shape)):
        return view
    if call.name in ("view", "_unsafe_view"):
        return squash(call.labels("self").reshape(call.shape))
    return call.run()


def _vector(weight: Weight, shape: Sequence[int]) -> Weight | None:
    before = [dim for dim, size in enumerate(weight.shape) if size > 1]
    after = [dim for dim, size in enumerate(shape) if size > 1]
    if len(before) != 1 or len(after) != 1 or weight.shape[before[0]] != shape[after[0]]:
        return None
    return Weight(weight.key, tuple(shape), tuple(weight.axes[before[0]] if dim == after[0] else -1 for dim in range(len(shape))))


def _bias(call: Call, name: str, line: Tensor) -> None:
    value = call.arguments.get(name) if name else None
    if isinstance(value, Weight) and len(value.shape) == 1 and value.shape[0] == len(line):
        touch(call, value, 0, line, 1)
    elif value is not None:
        call.ledger.freeze(line, "its bias is computed in forward", call.where)
        call.ledger.freeze(call.as_labels(value), "a bias is computed from it in forward", call.where)


RULES: dict[str, Rule] = {
    "linear": linear,
    **named("matmul mm bmm addmm", matmul),
    "scaled_dot_product_attention": attention,
    **named("conv1d conv2d conv3d", convolution),
    **named("conv_transpose1d conv_transpose2d conv_transpose3d", transposed),
    "batch_norm": batch_norm,
    **named("layer_norm rms_norm group_norm instance_norm", norm),
    "prelu": prelu,
    **named("embedding embedding_bag", embedding),
    **named("lstm gru rnn_tanh rnn_relu", recurrent),
    **named("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", recurrent_cell),
    **{name: rule for name, rule in shapes.SHAPES.items() if rule in (shapes.same, shapes.turned, shapes.indexed)},
    **dict.fromkeys((name for name, rule in shapes.SHAPES.items() if rule in MOVES), moved),
    **{name: shapes.unrelated for name, rule in shapes.SHAPES.items() if rule in (shapes.made, shapes.unrelated)},
    **{name: homogeneous.pointwise for name, rule in shapes.SHAPES.items() if rule is shapes.pointwise},
    **named("cat concat concatenate stack", homogeneous.joined),
    **named("pad constant_pad_nd", homogeneous.padded),
    **named("mean sum amax amin", shapes.reduced),
    "cumsum": shapes.scanned,
    "pixel_shuffle": shapes.pixel_shuffle,
    "channel_shuffle": shapes.channel_shuffle,
    "native_channel_shuffle": shapes.channel_shuffle,
    "glu": homogeneous.glu,
    "masked_fill": homogeneous.masked,
    "where": homogeneous.chosen,
    **named("softmax log_softmax _softmax _log_softmax logsumexp prod var std", homogeneous.mixing),
}
