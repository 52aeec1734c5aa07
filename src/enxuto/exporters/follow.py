"""The grids that weights lie on in torch, found again in a graph that folded, transposed and renamed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from torch import Tensor

from enxuto.exporters.graphs import OFF, attributes, floats, path_of
from enxuto.exporters.ways import PRODUCTS, WEIGHTED

PIECE = 1 << 17  # numbers that are taken to double precision at once


@dataclass(frozen=True)
class Followed:
    """The grid of one initializer."""

    name: str  # of the parameter in torch
    scale: npt.NDArray[np.float32]  # [out], or [out, groups]
    axis: int  # of the output channels
    largest: float  # of its codes


def follow(
    graph: onnx.GraphProto, given: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Followed], list[str]]:
    """The grids by initializer, of weights that still lie on them; notes on those that do not.

    The exporter folds batch norm into the convolution before it, which multiplies a channel and its scale alike, and
    transposes the weight of a Linear that runs as MatMul. `given`: [1], [out] or [out, groups] by parameter name.
    """
    constants = {item.name: item for item in graph.initializer}
    readers = _readers(graph)
    found: dict[str, Followed] = {}
    notes: list[str] = []
    for name, scales in given.items():
        node = readers.get(name.rpartition(".")[0])
        if node is not None and node.op_type not in PRODUCTS:
            continue
        if node is None:
            notes.append(f"the scales of '{name}' are not in the file: no operator of the graph uses that weight alone")
            continue
        weight, axis = numpy_helper.to_array(constants[node.input[1]]), _axis(node)
        channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        scale = _by_channel(scales, len(channels))
        if name in parameters:
            size = _sizes(parameters[name].detach().cpu().flatten(1).numpy())
            scale *= np.divide(_sizes(channels), size, out=np.ones_like(size), where=size > 0)[:, None]
        scale[scale <= 0] = 1.0
        off, most = _codes(channels, scale)
        if off > OFF:
            notes.append(f"the scales of '{name}' are not in the file: the exporter changed the weight")
            continue
        exact = scale.astype(np.float32)
        found[node.input[1]] = Followed(name, exact[:, 0] if exact.shape[1] == 1 else exact, axis, most)
    return found, notes


def _readers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that reads the weight of each layer, by its path; none where several do, as with separate projections."""
    known = floats(graph)
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        first = node.op_type in PRODUCTS and node.input[1] in known
        if first or (node.op_type not in PRODUCTS and node.op_type in (*WEIGHTED, "Gather") and known.keys() & set(node.input)):
            found.setdefault(path_of(node), []).append(node)
    return {path: nodes[0] for path, nodes in found.items() if len(nodes) == 1 or nodes[0].op_type not in PRODUCTS}


def _by_channel(scales: Tensor, channels: int) -> npt.NDArray[np.float64]:
    """Shapes: [1], [out] or [out, groups] -> [out, groups]."""
    values = scales.detach().cpu().double().numpy()
    values = values if values.ndim == 2 else values.reshape(-1, 1)
    return np.broadcast_to(values, (channels, values.shape[1])).copy()


def _sizes(channels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The largest absolute value of each row."""
    return np.maximum(channels.max(1), -channels.min(1)).astype(np.float64)


def _codes(channels: npt.NDArray[Any], scale: npt.NDArray[np.float64]) -> tuple[float, float]:
    """How far the codes are off whole numbers at most, and the largest; some rows at a time. Shapes: [out, in], [out, groups]."""
    off = most = 0.0
    for rows in np.array_split(np.arange(len(channels)), max(1, channels.size // PIECE)):
        codes = channels[rows].reshape(*scale[rows].shape, -1) / scale[rows, :, None]
        off = max(off, float(np.abs(codes - codes.round()).max(initial=0)))
        most = max(most, float(np.abs(codes).max(initial=0)))
    return off, most


def _axis(node: onnx.NodeProto) -> int:
    """The output channels of a weight: axis 0, except in a MatMul and an untransposed Gemm."""
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB") else 1
    return 1 if node.op_type == "MatMul" else 0
