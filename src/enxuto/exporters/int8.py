"""A float32 .onnx file as an int8 one: ONNX Runtime's own quantizer, told the grids that enxuto already chose.

Weights int8 per channel, activations uint8 per tensor, as QDQ pairs: the only combination whose operators all fuse on
a CPU.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from enxuto.exporters.follow import Followed, follow
from enxuto.exporters.graphs import Scales, path_of
from enxuto.exporters.integers import Placed, placed
from enxuto.exporters.messages import save
from enxuto.exporters.ranges import float_nodes, ranges
from enxuto.exporters.tables import tables_in_integers_
from enxuto.exporters.ways import INTEGER, PRODUCTS, Way, ways, without_kernel, write_
from enxuto.files import whole_file
from enxuto.progress import unheard

SAME_GRID = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")  # output on the grid of the input
LARGEST_CODE = {7: 64, 8: 128}  # ONNX Runtime's 7-bit range is -64...64
LARGEST_BIAS = 2.0**30  # half of int32; the other half is left for the sum of products that it is added to
SMALLEST_SCALE = 1e-30  # of a bias; a smaller one would leave the normal float32 numbers


@dataclass(frozen=True)
class Quantized:
    """Which weights kept the grids they were given, and what could not be treated."""

    kept: tuple[str, ...]  # initializers whose given scales are in the file exactly
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What is known of a network beside its graph."""

    weight_scales: Mapping[str, Tensor] = field(default_factory=dict)  # [1], [out] or [out, groups], by parameter name
    input_grids: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # scale and zero point in 0...255, by layer path
    parameters: Mapping[str, Tensor] = field(default_factory=dict)  # the float weights, by name


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
    8 bits is replaced, with a note. An LSTM gets the range of its inputs at each call; other layers without an integer
    kernel have 8-bit weights and compute in float.
    Raises: ExportError when there is no calibration batch or the runtime's quantizer fails; OutputError.
    """
    batches = list(calibration)
    if not batches:
        raise ExportError(f"'{Path(path).name}' needs value ranges and calibration holds no batch; give at least one.")
    graph = Graph(float_path, batches, Given(weight_scales or {}, input_grids or {}, parameters or {}), weight_bits)
    chosen = {name: each[0] for name, each in ways(graph.proto.graph, "int8").items()}
    with whole_file(path) as temporary:
        graph.write(temporary, chosen)
    notes = (*graph.notes, *without_kernel(graph.proto.graph, chosen))
    return Quantized(kept=tuple(sorted(graph.kept)), notes=notes)


class Graph:
    """A float32 .onnx file that `to_onnx` wrote, of which smaller ones are made."""

    def __init__(
        self, path: str | os.PathLike[str], batches: Sequence[Batch], given: Given, weight_bits: Literal[7, 8] = 7
    ) -> None:
        self.path, self.batches, self.given, self.weight_bits = Path(path), batches, given, weight_bits
        self.proto = onnx.load(os.fspath(path))
        self.grids, self.notes = follow(self.proto.graph, given.weight_scales, given.parameters)
        properties = {item.key: item.value for item in self.proto.metadata_props}
        prepared = properties | {"onnx.quant.pre_process": "onnxruntime.quant"}  # else the quantizer asks for more
        helper.set_model_props(self.proto, prepared)

    @functools.cached_property
    def kept(self) -> dict[str, Followed]:
        """The grids that integer products can have, by initializer; a note says which they cannot."""
        largest = LARGEST_CODE[self.weight_bits]
        wide = [each.name for each in self.grids.values() if each.largest > largest]
        if wide:
            some = ", ".join(f"'{name}'" for name in wide[:3]) + (", ..." if len(wide) > 3 else "")
            self.notes.append(
                f"{len(wide)} weights use all 8 bits and were rounded to 7, which no processor overflows on: {some}"
            )
        return {name: each for name, each in self.grids.items() if each.largest <= largest and each.scale.ndim == 1}

    @functools.cached_property
    def ranges(self) -> tuple[TensorsData, frozenset[str]]:
        """What was seen of each tensor, and which hold masks."""
        return ranges(self.proto, self.batches, INTEGER)

    def write(self, path: str | os.PathLike[str], chosen: Mapping[str, Way]) -> None:
        """Writes a file whose nodes are computed the ways that were chosen for them."""
        known = Scales(
            {name: each.scale for name, each in self.grids.items()},
            {name: scale.detach().cpu().float().numpy() for name, scale in self.given.weight_scales.items()},
        )
        try:
            with unheard():  # the quantizer puts its remarks on the root logger
                made = self._static(chosen) if "static" in chosen.values() else copy.deepcopy(self.proto)
                write_(made, chosen, known)
                tables_in_integers_(made, known.parameters)
        except Error:
            raise
        except Exception as error:  # the runtime's quantizer raises whatever comes to it
            raise ExportError(
                f"ONNX Runtime's quantizer does not take '{self.path.name}' ({type(error).__name__}: {error}); "
                "ship the float32 file."
            ) from error
        save(made, path)

    def _static(self, chosen: Mapping[str, Way]) -> onnx.ModelProto:
        overrides: dict[str, list[dict[str, Any]]] = _at_inputs(self.proto, self.given.input_grids)
        for name, each in self.kept.items():
            overrides[name] = [_override(value, 0, QuantType.QInt8) | {"axis": each.axis} for value in each.scale]
        spans, masked = self.ranges
        others = [name for name, way in chosen.items() if way != "static"]
        where = placed(self.proto.graph, INTEGER, [*float_nodes(self.proto.graph, masked), *others])
        return _quantized(self.proto, spans, where, overrides, self.weight_bits)


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
        op_types_to_quantize=list(INTEGER),
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
        grid = grids.get(path_of(node))
        if node.op_type not in PRODUCTS or grid is None or node.input[0] in weights:
            continue
        source = node.input[0]
        while source in made and made[source].op_type in SAME_GRID:
            source = made[source].input[0]
        overrides.setdefault(source, [_override(*grid, QuantType.QUInt8)])
    return overrides
