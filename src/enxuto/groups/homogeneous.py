"""Rules for factors at operators without layers: sums, products, activations, and what joins or fills channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from enxuto.groups import shapes
from enxuto.groups.call import Call
from enxuto.groups.effects import touch
from enxuto.groups.ledger import FIXED, Value, Weight, along, line_of, squash, varying

NOT_HOMOGENEOUS = "does not pass factors on"
PROBES = (2.0, 0.37)  # factors with which an operator is tried


def joined(call: Call) -> Value:
    """cat, stack: as in pruning, where the channels of each part lie along one dimension."""
    if any(len(varying(labels)) > 1 for labels in call.tensors()):
        return call.freeze_all("channels that lie along several dimensions are joined")
    return shapes.joined(call)


def glu(call: Call) -> Value:
    """The first half passes, the gate does not."""
    labels, dim = call.labels("self"), call.integer("dim", -1)
    first, gate = labels.chunk(2, dim)
    call.ledger.freeze(gate, f"glu {NOT_HOMOGENEOUS}", call.where)
    return squash(first)


def padded(call: Call) -> Value:
    """Zeros have any factor; other constants have none."""
    value = call.arguments.get("value")
    return call.freeze_all("it is padded with other values than zero") if value else shapes.padded(call)


def masked(call: Call) -> Value:
    """masked_fill with zero."""
    value = call.arguments["value"]
    if isinstance(value, (int, float)) and value == 0:
        return call.result(call.labels("self").expand(call.shape))
    return call.freeze_all("it is filled with other values than zero")


def chosen(call: Call) -> Value:
    """where: both have the same factors."""
    call.ledger.freeze(call.labels("condition"), f"where {NOT_HOMOGENEOUS}", call.where)
    return _sum(call, ["self", "other"])


def mixing(call: Call) -> Value:
    """Softmax and the like."""
    return call.freeze_all(f"{call.name} {NOT_HOMOGENEOUS}")


def pointwise(call: Call) -> Value:
    """Sums have the same factors on both sides, products the factors of both; any other operator is tried on numbers."""
    names = [name for name, value in call.arguments.items() if isinstance(value, Tensor | Weight)]
    name = call.name.rstrip("_")
    if len(names) == 1 and not isinstance(call.arguments[names[0]], Weight):
        labels = call.labels(names[0])
        if not bool((labels != FIXED).any()):
            return call.fixed()
        return call.result(labels.expand(call.shape)) if _homogeneous(call, names[0]) else call.freeze_all(_told(call))
    if len(names) == 2 and name in ("add", "sub", "maximum", "minimum"):
        return _sum(call, names)
    if len(names) == 2 and name in ("mul", "div"):
        return _times(call, names, by_weight=name == "mul")
    return call.freeze_all(_told(call))


def _told(call: Call) -> str:
    return f"{call.name.rstrip('_')} {NOT_HOMOGENEOUS}"


def _homogeneous(call: Call, name: str) -> bool:
    """f(a x) = a f(x), tried on numbers of many sizes."""
    size = torch.logspace(-4, 4, 33, dtype=torch.float64)
    x = torch.cat([-size.flip(0), size])
    try:
        results = [call.run(**{name: x * factor}) for factor in (1.0, *PROBES)]
    except RuntimeError:  # not for such numbers
        return False
    base, *scaled = results
    if not isinstance(base, Tensor) or not base.is_floating_point():
        return False
    pairs = zip(scaled, PROBES, strict=True)
    return all(isinstance(each, Tensor) and torch.allclose(each, base * factor, rtol=1e-6, atol=0) for each, factor in pairs)


def _sum(call: Call, names: Sequence[str]) -> Value:
    values = [call.arguments[name] for name in names]
    flowing = [call.as_labels(value).expand(call.shape) for value in values if not isinstance(value, Weight)]
    if not flowing:
        return call.freeze_all("it is computed from parameters")
    main = flowing[0]
    for other in flowing[1:]:
        call.ledger.unify(main, other, "it is added to what has no factors", call.where)
    for value in values:
        if isinstance(value, Weight):
            _added(call, value, main)
    return call.result(main)


def _added(call: Call, weight: Weight, labels: Tensor) -> None:
    """A parameter that is added, as a bias or as positions are, takes the factors of what it is added to."""
    dims = varying(labels)
    own = dims[0] - (labels.ndim - len(weight.shape)) if len(dims) == 1 else -1
    line = line_of(labels, dims[0]) if len(dims) == 1 else None
    if line is None or own < 0 or weight.shape[own] != len(line) or weight.axes[own] < 0:
        call.ledger.freeze(labels, "a parameter is added across its channels", call.where)
        call.as_labels(weight)
    else:
        touch(call, weight, own, line, 1)


def _times(call: Call, names: Sequence[str], *, by_weight: bool) -> Value:
    first, second = (call.arguments[name] for name in names)
    if isinstance(first, Weight) and not isinstance(second, Weight) and by_weight:
        first, second = second, first
    if isinstance(second, Weight) and not isinstance(first, Weight) and by_weight:
        return _scaled(call, call.as_labels(first), second)
    one, two = (call.as_labels(value).expand(call.shape) for value in (first, second))
    if by_weight and not bool((one != FIXED).any()):
        one, two = two, one
    call.ledger.freeze(two, "it is multiplied with other channels", call.where)
    return call.result(one)


def _scaled(call: Call, labels: Tensor, weight: Weight) -> Value:
    """A vector that multiplies channels takes out the factors that they have, and gives others."""
    long = [dim for dim, size in enumerate(weight.shape) if size > 1]
    if not long:
        return call.result(labels.expand(call.shape))  # one number for all
    dim = long[0] + len(call.shape) - len(weight.shape)
    labels = labels.expand(call.shape)
    line = line_of(labels, dim)
    if len(long) > 1 or line is None or weight.axes[long[0]] < 0:
        call.ledger.freeze(labels, "a parameter multiplies it across its channels", call.where)
        call.as_labels(weight)
        return call.fixed()
    out = call.ledger.fresh(len(line))
    touch(call, weight, long[0], line, -1)
    touch(call, weight, long[0], out, 1)
    return call.result(along(out, call.shape, dim))
