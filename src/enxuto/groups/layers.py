"""Rules for operators with weights: which rows write a channel, which columns read it, what follows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from enxuto.groups.call import Call, fixed
from enxuto.groups.ledger import ADAPTS, FIXED, Read, Value, Weight, along, line_of, varying
from enxuto.groups.shapes import Rule

COMPUTED = "its weight is computed in forward"
ELSEWHERE = "it works along a dimension that holds no channels"
MEETS = "it reads what cannot be cut"


def convolution(call: Call) -> Value:
    """conv1d, conv2d, conv3d: rows write, columns read; depthwise rows follow; groups are coupled."""
    weight, labels = call.arguments["weight"], call.labels("input")
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    channel = labels.ndim - len(weight.shape) + 1
    line = line_of(labels, channel)
    if line is None:
        return call.freeze_all(ELSEWHERE)
    groups, per_group = call.integer("groups", 1), weight.shape[1]
    if groups == 1:
        _read(call, "input", weight, 1, line)
        out = call.ledger.axis(weight, 0, writer=call.where)
    elif per_group == 1:
        out = call.ledger.axis(weight, 0)
        call.ledger.unify(out.view(groups, -1), _seen(line).view(groups, 1), MEETS, call.where)
    else:
        call.ledger.unify_rows(_seen(line).view(groups, per_group))
        _read(call, "input", weight, 1, line.view(groups, per_group)[0])
        out = call.ledger.axis(weight, 0, writer=call.where)
        call.ledger.unify_rows(out.view(groups, -1))
    _follow(call, "bias", out)
    return along(out, call.shape, channel)


def transposed(call: Call) -> Value:
    """conv_transpose1d, 2d, 3d: columns write, rows read."""
    weight, labels = call.arguments["weight"], call.labels("input")
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    channel = labels.ndim - len(weight.shape) + 1
    line = line_of(labels, channel)
    groups = call.integer("groups", 1)
    if line is None or (groups > 1 and groups != len(line)):
        return call.freeze_all(ELSEWHERE if line is None else "a grouped transposed convolution couples all its channels")
    if groups == 1:
        _read(call, "input", weight, 0, line)
        out = call.ledger.axis(weight, 1, writer=call.where)
    else:
        rows = call.ledger.axis(weight, 0)
        call.ledger.unify(rows, _seen(line), MEETS, call.where)
        out = rows.repeat_interleave(weight.shape[1])
    _follow(call, "bias", out)
    return along(out, call.shape, channel)


def linear(call: Call) -> Value:
    """linear: rows write, columns read."""
    return _product(call, "input", call.arguments["weight"], out_dim=0, bias="bias")


def matmul(call: Call) -> Value:
    """matmul, mm, addmm: an activation times a weight is a linear layer; two activations mix their channels."""
    first, second, weight = call.factors()
    if weight is not None:
        return _product(call, first, weight, out_dim=1, bias="self" if call.name == "addmm" else "")
    left_labels, right_labels = call.labels(first), call.labels(second)
    if min(left_labels.ndim, right_labels.ndim) >= 2:
        mixes = {left_labels.ndim - 1} & set(varying(left_labels)) or {right_labels.ndim - 2} & set(varying(right_labels))
        if not mixes and not varying(left_labels) and varying(right_labels) == [right_labels.ndim - 1]:
            line = line_of(right_labels, -1)  # fixed numbers mix positions, the channels pass
            assert line is not None
            if not bool((left_labels.reshape(-1)[:1] > 0).any()):
                return along(line, call.shape, len(call.shape) - 1)
    return call.freeze_all("a product of two activations mixes the channels")


def _product(call: Call, data: str, weight: object, *, out_dim: int, bias: str) -> Value:
    labels = call.labels(data)
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    line = line_of(labels, -1)
    if line is None:  # token mixing: the channels lie elsewhere and pass, this layer stays whole
        for dim in (0, 1):
            call.ledger.freeze(
                call.ledger.axis(weight, dim, writer=call.where if dim == out_dim else None), ELSEWHERE, call.where
            )
        return call.freeze_all(ELSEWHERE)
    _read(call, data, weight, 1 - out_dim, line)
    out = call.ledger.axis(weight, out_dim, writer=call.where)
    if bias:
        _follow(call, bias, out)
    return along(out, call.shape, len(call.shape) - 1)


def norm(call: Call) -> Value:
    """batch_norm, instance_norm: every channel has its own scale, shift and statistics."""
    labels = call.labels("input")
    line = line_of(labels, 1)
    if line is None:
        return call.freeze_all(ELSEWHERE)
    for name in ("weight", "bias", "running_mean", "running_var"):
        _follow(call, name, line)
    if call.name == "instance_norm" and not isinstance(call.arguments.get("weight"), Weight) and call.where:
        count = call.ledger.axis(Weight(f"{call.where}.num_features", (len(line),), (0,)), 0)
        call.ledger.unify(count, _seen(line), MEETS, call.where)
    return along(line, call.shape, 1)


def prelu(call: Call) -> Value:
    """One slope for all channels, or one for each."""
    labels, weight = call.labels("self"), call.arguments["weight"]
    if isinstance(weight, Weight) and weight.shape[0] > 1:
        line = line_of(labels, 1)
        if line is None:
            return call.freeze_all(ELSEWHERE)
        _follow(call, "weight", line)
    return labels


def mixing(call: Call) -> Value:
    """Layer norm, group norm, attention: what one channel is depends on the others, so none can go without a change."""
    kind = {"scaled_dot_product_attention": "attention"}.get(call.name, call.name.replace("_", " "))
    return call.freeze_all(f"{kind} mixes the channels")


def embedding(call: Call) -> Value:
    """The columns of the table write the channels."""
    weight = call.arguments["weight"]
    if not isinstance(weight, Weight):
        return call.freeze_all(COMPUTED)
    line = call.ledger.axis(weight, 1, writer=call.where)
    outputs = [along(line, call.shape, len(call.shape) - 1), *(fixed(shape) for shape in call.shapes[1:])]
    return call.result(*outputs)


def recurrent(call: Call) -> Value:
    """lstm, gru, rnn: a hidden unit is a row of every gate and a recurrent column, in all layers and directions."""
    given = call.arguments["params"]
    assert isinstance(given, Sequence)
    params = [each for each in given if isinstance(each, Weight)]
    line = line_of(call.labels("input"), -1)
    directions = 2 if call.arguments["bidirectional"] else 1
    per_cell = len(params) // (call.integer("num_layers") * directions)
    if len(params) != len(given) or line is None:
        return call.freeze_all(COMPUTED if line is not None else ELSEWHERE)
    hidden: Tensor | None = None
    for cell in range(len(params) // per_cell):
        first = cell < directions
        source = line if first else _written(params, per_cell, call).repeat(directions)
        before = "" if first else f"{call.node}.layer{cell // directions - 1}"
        own = params[cell * per_cell : (cell + 1) * per_cell]
        hidden = _cell(call, own, source, hidden, before, f"{call.node}.cell{cell}")
    assert hidden is not None
    written = _written(params, per_cell, call)
    states = call.arguments["hx"]
    for state, units in zip(states if isinstance(states, Sequence) else [states], (written, hidden), strict=False):
        _starts(call, state, units)
    outputs = [along(written.repeat(directions), call.shape, len(call.shape) - 1)]
    outputs += [along(units, shape, len(shape) - 1) for shape, units in zip(call.shapes[1:], (written, hidden), strict=False)]
    return call.result(*outputs)


def recurrent_cell(call: Call) -> Value:
    """lstm_cell, gru_cell, rnn_tanh_cell: one step of the same."""
    names = [name for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call.arguments.get(name) is not None]
    params = [each for each in (call.arguments[name] for name in names) if isinstance(each, Weight)]
    line = line_of(call.labels("input"), -1)
    if len(params) != len(names) or line is None:
        return call.freeze_all(COMPUTED if line is not None else ELSEWHERE)
    units = _cell(call, params, line, None, "", f"{call.node}.cell0")
    states = call.arguments["hx"]
    for state in states if isinstance(states, Sequence) else [states]:
        _starts(call, state, units)
    return call.result(*(along(units, shape, len(shape) - 1) for shape in call.shapes))


def _cell(call: Call, params: Sequence[Weight], source: Tensor, hidden: Tensor | None, before: str, name: str) -> Tensor:
    """The labels of the hidden units of one direction of one layer, made the same as `hidden`. Shapes: -> [hidden].

    `before` names the values of the layer below, "" where the cell reads the input of the call; `name` its own values.
    """
    w_ih, w_hh, *rest = params
    projection = rest[-1] if rest and len(rest[-1].shape) == 2 else None
    gates = w_ih.shape[0] // (w_hh if projection is None else projection).shape[1]
    units = call.ledger.axis(w_ih, 0, writer=call.where).view(gates, -1)[0]
    for rows in [w_ih, w_hh, *rest]:
        if rows is not projection:
            every = call.ledger.axis(rows, 0, writer=call.where if rows in (w_ih, w_hh) else None).view(gates, -1)
            call.ledger.unify(every, units.expand(gates, -1), "", "")
    if hidden is not None:
        call.ledger.unify(units, hidden, "", "")
    written = units
    if projection is not None:
        written = call.ledger.axis(projection, 0, writer=call.where)
        _sum(call, f"{name}.state", units, projection, 1, units)
    _sum(call, name, written, w_hh, 1, written)
    _sum(call, before or call.sources["input"], source if before else call.labels("input"), w_ih, 1, source)
    return units


def _written(params: Sequence[Weight], per_cell: int, call: Call) -> Tensor:
    """The labels of what a recurrent layer hands on, the same in all cells: its hidden units, or their projection."""
    if per_cell not in (3, 5):
        return call.ledger.axis(params[0], 0, writer=call.where)[: params[1].shape[1]]
    lines = [call.ledger.axis(params[i], 0, writer=call.where) for i in range(per_cell - 1, len(params), per_cell)]
    for line in lines[1:]:
        call.ledger.unify(lines[0], line, "", "")
    return lines[0]


def _starts(call: Call, state: object, units: Tensor) -> None:
    """The first hidden state, given or zeros, has the same units."""
    labels = call.as_labels(state)
    line = line_of(labels, -1)
    if line is None:
        call.ledger.freeze(units, "its first state varies along another dimension", call.where)
    else:
        call.ledger.unify(units, line, "its first state is given from outside", call.where)


def _read(call: Call, data: str, weight: Weight, dim: int, line: Tensor) -> None:
    """Says that one dimension of a weight sums over the channels of an argument."""
    _sum(call, call.sources.get(data, ""), call.labels(data), weight, dim, line)


def _sum(call: Call, source: str, labels: Tensor, weight: Weight, dim: int, line: Tensor) -> None:
    """The same for values by name, and remembers them, to see later which channels are zero there."""
    call.ledger.unify(call.ledger.axis(weight, dim, reads=True), _seen(line), MEETS, call.where)
    call.ledger.reads.append(Read(source, labels, weight, dim))


def _seen(line: Tensor) -> Tensor:
    """What a layer sees of labels that adapt: values it cannot choose."""
    return torch.where(line == ADAPTS, FIXED, line)


def _follow(call: Call, name: str, line: Tensor) -> None:
    """A vector with one value for each channel: bias, scale, running statistics."""
    value = call.arguments.get(name)
    if isinstance(value, Weight) and len(value.shape) == 1:
        call.ledger.unify(call.ledger.axis(value, 0), _seen(line), MEETS, call.where)
    elif value is not None:
        labels = call.as_labels(value)
        if varying(labels) or labels.numel() > 1:
            call.ledger.freeze(line, "its bias is computed in forward", call.where)
            call.ledger.freeze(labels, "a bias is computed from it in forward", call.where)


LAYERS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm"), matmul),
    **dict.fromkeys(("batch_norm", "instance_norm"), norm),
    "prelu": prelu,
    **dict.fromkeys(("layer_norm", "group_norm", "rms_norm", "scaled_dot_product_attention"), mixing),
    **dict.fromkeys(("embedding", "embedding_bag"), embedding),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), recurrent_cell),
}
