"""A float32 .onnx file as an int8 one: ONNX Runtime's own quantizer, told the grids that enxuto already chose.

Weights int8 per channel, activations uint8 per tensor, as QDQ pairs: the only combination whose operators all fuse on
a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from torch import Tensor

from enxuto.batches import Batch
from enxuto.errors import Error, ExportError
from enxuto.exporters.integers import Placed, placed
from enxuto.exporters.ranges import float_nodes, ranges
from enxuto.exporters.tables import tables_in_integers_
from enxuto.files import whole_file
from enxuto.progress import unheard

WEIGHTED = ("Conv", "Gemm", "MatMul")  # operators with a weight as second input, and an integer kernel
SAME_GRID = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")  # output on the grid of the input
LEFT_IN_FLOAT = (
    *("LSTM", "GRU", "RNN", "Gather", "Einsum", "ConvTranspose"),
)  # weighted operators without an integer kernel in this format
QUANTIZED = (
    *WEIGHTED,
    *("Add", "Sub", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid", "GlobalAveragePool", "AveragePool"),
    *("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Split", "Slice", "Pad"),
)
LARGEST_CODE = {7: 64, 8: 128}  # ONNX Runtime's 7-bit range is -64...64
LARGEST_BIAS = 2.0**30  # half of int32; the other half is left for the sum of products that it is added to
PIECE = 1 << 17  # numbers that are taken to double precision at once
SMALLEST_SCALE = 1e-30  # of a bias; a smaller one would leave the normal float32 numbers
Grid = tuple[npt.NDArray[np.float32], int]


@dataclass(frozen=True)
class Quantized:
    """Which weights kept the grids they were given, and what could not be treated."""

    kept: tuple[str, ...]  # parameters whose given scales are in the file exactly
    notes: tuple[str, ...] = ()


def quantize_onnx(
    float_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    calibration: Iterable[Batch],
    *,
    weight_scales: Mapping[str, Tensor] | None = None,
    input_grids: Mapping[str, tuple[float, int]] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    weight_bits: Literal[7, 8] = 7,
) -> Quantized:
    """Writes the int8 version of a float32 .onnx file that `to_onnx` wrote.

    `weight_scales`: scale [1] or [out] of a symmetric int8 grid by parameter name ("conv1.weight"); `input_grids`:
    (scale, zero point in 0...255) of the input of the layer at a path ("conv1"); both are used exactly, everything
    else is calibrated (smallest and largest value). `parameters`: the float weights by name, needed to follow a scale
    through a folded batch norm. `weight_bits`: 7 is right everywhere; 8 only on processors with an int8 dot product
    (VNNI, ARM), because others add pairs of products in 16 bits, which overflows. With 7, a given grid that uses all
    8 bits is replaced, with a note.
    Raises: ExportError when there is no calibration batch or the runtime's quantizer fails; OutputError.
    """
    batches = list(calibration)
    if not batches:
        raise ExportError(f"'{Path(path).name}' needs value ranges and calibration holds no batch; give at least one.")
    proto = onnx.load(os.fspath(float_path))
    largest = LARGEST_CODE[weight_bits]
    grids, notes = _follow(proto, weight_scales or {}, parameters or {}, largest)
    overrides: dict[str, list[dict[str, Any]]] = _at_inputs(proto, input_grids or {})
    for name, (scale, axis) in grids.items():
        overrides[name] = [_override(value, 0, QuantType.QInt8) | {"axis": axis} for value in scale]
    properties = {item.key: item.value for item in proto.metadata_props}
    helper.set_model_props(proto, properties | {"onnx.quant.pre_process": "onnxruntime.quant"})  # else it asks for more
    try:
        with unheard():  # the quantizer puts its remarks on the root logger
            spans, masked = ranges(proto, batches, QUANTIZED)
            where = placed(proto.graph, QUANTIZED, float_nodes(proto.graph, masked))
            made = _quantized(proto, spans, where, overrides, weight_bits)
            tables = tables_in_integers_(made, weight_scales or {})
    except Error:
        raise
    except Exception as error:  # the runtime's quantizer raises whatever comes to it
        raise ExportError(
            f"ONNX Runtime's quantizer does not take '{Path(float_path).name}' ({type(error).__name__}: {error}); "
            "ship the float32 file."
        ) from error
    notes += _left_in_float(proto, tables)
    with whole_file(path) as temporary:
        onnx.save_model(made, temporary)
    return Quantized(kept=tuple(sorted(grids)), notes=tuple(notes))


def _quantized(
    proto: onnx.ModelProto, spans: TensorsData, where: Placed, overrides: dict[str, list[dict[str, Any]]], weight_bits: int
) -> onnx.ModelProto:
    quantizer = _Quantizer(
        save_and_reload_model_with_shape_infer(proto),
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=spans,
        nodes_to_quantize=[],
        nodes_to_exclude=list(where.float_nodes),
        op_types_to_quantize=list(QUANTIZED),
        extra_options={"TensorQuantOverrides": overrides},
    )
    quantizer.float_tensors = where.float_tensors
    made: onnx.ModelProto = quantizer.quantize_model()
    return made


class _Quantizer(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantizer with outputs that stay float, and room in 32 bits for a bias and the products added to it.

    A bias has the scale of the input times that of the weights, so tiny weights beside a normal bias (weight decay makes
    them) overflow it. Their scale is raised, given or not: they lose what the bias hides anyway. The runtime's own remedy
    fills all 32 bits, and the sum overflows.
    """

    float_tensors: frozenset[str] = frozenset()

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self.float_tensors:
            super().quantize_activation_tensor(tensor_name)

    def _adjust_weight_scale_for_int32_bias(
        self,
        input_scale: npt.NDArray[Any],
        weight_scale: npt.NDArray[Any],
        weight_name: str,
        bias_tp: onnx.TensorProto,
        is_per_channel: bool,
    ) -> tuple[bool, npt.NDArray[Any]]:
        size = np.abs(numpy_helper.to_array(bias_tp).astype(np.float64)).reshape(-1)
        needed = np.maximum(size / LARGEST_BIAS, SMALLEST_SCALE) / input_scale.item()
        needed = needed if is_per_channel else needed.max(initial=0.0)
        return bool((weight_scale < needed).any()), np.maximum(weight_scale, needed).astype(weight_scale.dtype)


def _override(scale: float, zero_point: int, kind: QuantType) -> dict[str, Any]:
    number = np.int8 if kind == QuantType.QInt8 else np.uint8
    return {
        "quant_type": kind,
        "scale": np.array(scale, dtype=np.float32),
        "zero_point": np.array(zero_point, dtype=number),
    }


def _at_inputs(proto: onnx.ModelProto, grids: Mapping[str, tuple[float, int]]) -> dict[str, list[dict[str, Any]]]:
    """Overrides for the tensors that enter the layers at the given paths, or that they are a mere reshaping of."""
    weights = {item.name for item in proto.graph.initializer}
    made = {name: node for node in proto.graph.node for name in node.output}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in proto.graph.node:
        grid = grids.get(_path(node))
        if node.op_type not in WEIGHTED or grid is None or node.input[0] in weights:
            continue
        source = node.input[0]
        while source in made and made[source].op_type in SAME_GRID:
            source = made[source].input[0]
        overrides.setdefault(source, [_override(*grid, QuantType.QUInt8)])
    return overrides


def _left_in_float(proto: onnx.ModelProto, tables: Collection[str]) -> list[str]:
    """A note for each layer with float weights that has no integer kernel and is no table; one for a layer of several nodes."""
    weights = {item.name for item in proto.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    notes = [
        f"'{_path(node)}' stays float: {node.op_type} has no static int8 kernel in ONNX Runtime"
        for node in proto.graph.node
        if node.op_type in LEFT_IN_FLOAT and weights.intersection(node.input) and node.name not in tables
    ]
    return list(dict.fromkeys(notes))


def _path(node: onnx.NodeProto) -> str:
    """The layer that `to_onnx` wrote into the node's name."""
    path: str = node.name.rpartition("/")[0]
    return path


def _follow(
    proto: onnx.ModelProto, weight_scales: Mapping[str, Tensor], parameters: Mapping[str, Tensor], largest: int
) -> tuple[dict[str, Grid], list[str]]:
    """Scales [out] and their axis by initializer name, for weights that still lie on the grid; notes on those that do
    not.

    The exporter folds batch norm into the convolution before it, which multiplies a channel and its scale alike, and
    transposes the weight of a Linear that runs as MatMul.
    """
    constants = {item.name: item for item in proto.graph.initializer}
    readers = _readers(proto.graph)
    found: dict[str, Grid] = {}
    notes: list[str] = []
    rounded: list[str] = []
    for name, given in weight_scales.items():
        node = readers.get(name.rpartition(".")[0])
        if node is not None and node.op_type in LEFT_IN_FLOAT:
            continue
        if node is None:
            notes.append(f"the scales of '{name}' are not in the int8 file: no operator of the graph uses that weight alone")
            continue
        weight, axis = numpy_helper.to_array(constants[node.input[1]]), _axis(node)
        channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        scale = np.broadcast_to(given.detach().cpu().double().numpy().reshape(-1), (len(channels),)).copy()
        if name in parameters:
            size = _sizes(parameters[name].detach().cpu().flatten(1).numpy())
            scale *= np.divide(_sizes(channels), size, out=np.ones_like(size), where=size > 0)
        scale[scale <= 0] = 1.0
        off, most = _codes(channels, scale)
        if off > 1e-2:
            notes.append(f"the scales of '{name}' are not in the int8 file: the exporter changed the weight")
            continue
        if most > largest:
            rounded.append(name)
            continue
        found[node.input[1]] = (scale.astype(np.float32), axis)
    if rounded:
        some = ", ".join(f"'{name}'" for name in rounded[:3]) + (", ..." if len(rounded) > 3 else "")
        notes.append(f"{len(rounded)} weights use all 8 bits and were rounded to 7, which no processor overflows on: {some}")
    return found, notes


def _readers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that reads the weight of each layer, by its path; none where several do, as with separate projections."""
    floats = {item.name for item in graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if (node.op_type in WEIGHTED and node.input[1] in floats) or (
            node.op_type in LEFT_IN_FLOAT and floats.intersection(node.input)
        ):
            found.setdefault(_path(node), []).append(node)
    return {path: nodes[0] for path, nodes in found.items() if len(nodes) == 1 or nodes[0].op_type in LEFT_IN_FLOAT}


def _sizes(channels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The largest absolute value of each row."""
    return np.maximum(channels.max(1), -channels.min(1)).astype(np.float64)


def _codes(channels: npt.NDArray[Any], scale: npt.NDArray[np.float64]) -> tuple[float, float]:
    """How far the codes are off whole numbers at most, and the largest; some rows at a time. Shapes: [out, in], [out]."""
    off = most = 0.0
    for rows in np.array_split(np.arange(len(channels)), max(1, channels.size // PIECE)):
        codes = channels[rows] / scale[rows, None]
        off = max(off, float(np.abs(codes - codes.round()).max(initial=0)))
        most = max(most, float(np.abs(codes).max(initial=0)))
    return off, most


def _axis(node: onnx.NodeProto) -> int:
    """The output channels of a weight: axis 0, except in a MatMul and an untransposed Gemm."""
    if node.op_type == "Gemm":
        return 0 if any(item.name == "transB" and item.i for item in node.attribute) else 1
    return 1 if node.op_type == "MatMul" else 0
