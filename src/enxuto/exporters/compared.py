"""How far an exported file is from torch on the calibration batches, and at which layer it goes wrong."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from torch import Tensor, nn

from enxuto.batches import arguments, leaves, rows
from enxuto.evaluation.onnxmodel import OnnxModel, feeds
from enxuto.evaluation.session import Array, open_session
from enxuto.task import Batch, call, evaluating

_ROWS = 8  # of a batch, whose every tensor is compared


def relative_error(model: nn.Module, path: str | os.PathLike[str], batches: Iterable[Batch]) -> float:
    """The largest error of an output of the file: the norm of its difference to torch's over the norm of torch's.

    Over all batches together; for whole numbers the share that differs. Values that are not finite in torch do not count. Where
    torch gives zeros alone, anything else is infinitely far.
    """
    file = OnnxModel(path)
    wrong: dict[int, float] = {}
    size: dict[int, float] = {}
    with evaluating(model):
        for batch in batches:
            pairs = zip(leaves(call(model, batch)), leaves(call(file, batch)), strict=True)
            for number, (expected, found) in enumerate(pairs):
                far, large = _squares(expected.detach().cpu(), found.detach().cpu())
                wrong[number] = wrong.get(number, 0.0) + far
                size[number] = size.get(number, 0.0) + large
    return max((_share(wrong[number], size[number]) for number in wrong), default=0.0)


def worst_layer(exact: str | os.PathLike[str], rounded: str | os.PathLike[str], batch: Batch) -> str:
    """The layer of a graph whose rounded version adds most error to what enters it, with the error before and after."""
    graph = onnx.load(os.fspath(exact))
    other = onnx.load(os.fspath(rounded))
    there = {name for node in other.graph.node for name in node.output}
    seen_as = {}
    for name in (name for node in graph.graph.node for name in node.output):
        restored = f"{name}_DequantizeLinear_Output"
        if name in there:
            seen_as[name] = restored if restored in there else name
    some = batch if OnnxModel(exact).fixed_batch else rows(batch, 0, _ROWS)
    errors = _errors(_tensors(graph, seen_as, some), _tensors(other, seen_as.values(), some), seen_as)
    added = {
        node.name: (errors[node.output[0]], max((errors.get(name, 0.0) for name in node.input), default=0.0))
        for node in graph.graph.node
        if node.output[0] in errors
    }
    if not added:
        return "no layer of it can be compared alone"
    name = max(added, key=lambda name: added[name][0] - added[name][1])
    after, before = added[name]
    return f"'{name}' adds most ({before:.1%} of what enters it, {after:.1%} of what it gives)"


def _share(wrong: float, size: float) -> float:
    """The root of one sum of squares over another."""
    return math.sqrt(wrong / size) if size else math.inf if wrong else 0.0


def _squares(expected: Tensor, found: Tensor) -> tuple[float, float]:
    if not expected.is_floating_point():
        return float((expected != found).sum()), float(expected.numel())
    counts = expected.isfinite()
    one, other = expected[counts].double(), found[counts].double()
    far = float((one - other).square().sum())
    return far if math.isfinite(far) else math.inf, float(one.square().sum())


def _tensors(proto: onnx.ModelProto, names: Iterable[str], batch: Batch) -> dict[str, Array]:
    given = feeds([item.name for item in proto.graph.input], *arguments(batch))
    wanted = list(names)
    shown = {item.name for item in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in shown)
    session = open_session(proto.SerializeToString())
    return dict(zip(wanted, session.run(wanted, given), strict=True))


def _errors(exact: Mapping[str, Array], rounded: Mapping[str, Array], seen_as: Mapping[str, str]) -> dict[str, float]:
    """The relative error of every float tensor, infinite values left out."""
    found = {}
    for name, values in exact.items():
        other = rounded[seen_as[name]]
        if values.dtype.kind == "f" and values.shape == other.shape:
            counts = np.isfinite(values) & np.isfinite(other)
            size = float(np.linalg.norm(values[counts].astype(np.float64)))
            found[name] = float(np.linalg.norm((values[counts] - other[counts]).astype(np.float64))) / size if size else 0.0
    return found
