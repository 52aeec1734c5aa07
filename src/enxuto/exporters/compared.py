"""How far an exported file is from torch on the calibration batches, and at which layer it goes wrong."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from enxuto.batches import Batch, arguments, leaves, rows
from enxuto.calls import call, evaluating
from enxuto.evaluation.onnxmodel import OnnxModel, feeds
from enxuto.evaluation.session import Array, open_session
from enxuto.exporters import LARGE_ERROR
from enxuto.functional.likeness import Spread

ROUNDING_ERROR = 1e-5  # of an output, as a share of its norm, that float32 explains
_ROWS = 8  # of a batch, whose every tensor is compared


@dataclass(frozen=True)
class Distance:
    """How far the outputs of a file are from torch's, each by the worst output: 0 is nowhere."""

    size: float  # the norm of the difference over the norm of what torch gives
    spread: float  # the difference over how far outputs differ between samples: 1 is as far as one sample is from the next

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.size, self.spread)

    @property
    def words(self) -> str:
        """The larger of the two where the first is small, as a clause."""
        if not math.isfinite(self.size):
            return "infinite, or not zero, where torch's are finite, or zero"
        if self.size > LARGE_ERROR:
            return f"{self.size:.0%} off from torch's"
        far = f"{self.spread:.0%}" if self.spread < 10 else f"{self.spread:.3g} times"
        return f"off from torch's by {far} of what they differ between samples"


def distance(model: nn.Module, path: str | os.PathLike[str], batches: Iterable[Batch]) -> Distance:
    """How far the file is from the model over all batches together; for whole numbers the share that differs.

    Values that are not finite in torch do not count. Where torch gives zeros alone, anything else is infinitely far.
    """
    file = OnnxModel(path)
    expected: dict[int, list[Tensor]] = {}
    found: dict[int, list[Tensor]] = {}
    with evaluating(model):
        for batch in batches:
            for outputs, kept in ((call(model, batch), expected), (call(file, batch), found)):
                for number, tensor in enumerate(leaves(outputs)):
                    kept.setdefault(number, []).append(tensor.detach().cpu())
    each = [_distance(ours, found[number]) for number, ours in expected.items()]
    return Distance(max((far.size for far in each), default=0.0), max((far.spread for far in each), default=0.0))


def _distance(expected: list[Tensor], found: list[Tensor]) -> Distance:
    """Of one output, given batch by batch."""
    squares = [_squares(ours, theirs) for ours, theirs in zip(expected, found, strict=True)]
    size = _share(sum(far for far, _ in squares), sum(large for _, large in squares))
    if not expected[0].is_floating_point() or size <= ROUNDING_ERROR:
        return Distance(size, size)
    spread = Spread.of(expected)
    errors = torch.cat([spread.errors(*_finite(ours, theirs)).flatten() for ours, theirs in zip(expected, found, strict=True)])
    return Distance(size, math.sqrt(float(errors.double().mean())) if errors.numel() else 0.0)


def _finite(expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    counts = expected.isfinite()
    return torch.where(counts, expected, 0).double(), torch.where(counts, found, 0).double()


Added = Mapping[str, tuple[float, float]]
"""The relative error of what enters a node and of what it gives, by its name."""


def worst_layer(exact: str | os.PathLike[str], rounded: str | os.PathLike[str], batch: Batch) -> str:
    """The layer of a graph whose rounded version adds most error to what enters it, with the error before and after."""
    found = added(exact, rounded, batch)
    if not found:
        return "no layer of it can be compared alone"
    name = max(found, key=lambda name: found[name][1] - found[name][0])
    before, after = found[name]
    return f"'{name}' adds most ({before:.1%} of what enters it, {after:.1%} of what it gives)"


def added(exact: str | os.PathLike[str], rounded: str | os.PathLike[str], batch: Batch) -> Added:
    """What each node of a graph adds to the error of its rounded version, where both can be seen."""
    nodes = [(node.name, list(node.input), list(node.output)) for node in onnx.load(os.fspath(exact)).graph.node]
    there = {name for node in onnx.load(os.fspath(rounded)).graph.node for name in node.output}
    seen_as = {}
    for name in (name for _, _, outputs in nodes for name in outputs):
        restored = f"{name}_DequantizeLinear_Output"
        if name in there:
            seen_as[name] = restored if restored in there else name
    some = batch if OnnxModel(exact).fixed_batch else rows(batch, 0, _ROWS)
    errors = _errors(_tensors(exact, seen_as, some), _tensors(rounded, seen_as.values(), some), seen_as)
    return {
        name: (max((errors.get(given, 0.0) for given in inputs), default=0.0), errors[outputs[0]])
        for name, inputs, outputs in nodes
        if outputs[0] in errors
    }


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


def _tensors(path: str | os.PathLike[str], names: Iterable[str], batch: Batch) -> dict[str, Array]:
    """What a file computes on the way, by name; of its weights no more than two copies are there at once."""
    proto = onnx.load(os.fspath(path))
    given = feeds([item.name for item in proto.graph.input], *arguments(batch))
    wanted = list(names)
    shown = {item.name for item in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in shown)
    whole = proto.SerializeToString()
    del proto
    session = open_session(whole)
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
