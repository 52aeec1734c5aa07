"""A network as a file that a runtime takes: float32 .onnx, or int8 .onnx on the grids the network already carries."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from enxuto.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from enxuto.task import Batch

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class OnnxFile:
    """An .onnx file that was written, run and compared with torch; `notes` say what a reader must know about it."""

    path: Path
    precision: Precision
    dynamic_batch: bool
    notes: tuple[str, ...] = ()


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    calibration: Iterable[Batch],
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
) -> OnnxFile:
    """Writes a network, coded or plain, as one .onnx file.

    fp32: coded weights are decoded. int8: weights keep the grids they have (8 bits or fewer, one scale per tensor or
    channel), layers whose inputs were calibrated keep those grids, everything else is calibrated on the batches.
    Raises: ExportError when the model cannot be exported or precision is unknown; OutputError when the file cannot be
    written.
    """
    from enxuto.exporters.int8 import quantize_onnx
    from enxuto.exporters.onnx import to_onnx
    from enxuto.surgery import to_float

    if precision not in ("fp32", "int8"):
        raise ExportError(f"precision={precision!r} is not known for '{Path(path).name}'; use 'fp32' or 'int8'.")
    if not hasattr(calibration, "__iter__") or hasattr(calibration, "ndim"):
        kind = type(calibration).__name__
        raise ExportError(f"calibration of '{Path(path).name}' is {kind}, not a list of batches; write calibration=[batch].")
    batches = list(calibration)
    if not batches:
        raise ExportError(f"'{Path(path).name}' needs sample inputs and calibration holds no batch; give at least one.")
    plain = to_float(model)
    if precision == "fp32":
        written = to_onnx(plain, batches[0], path, dynamic_batch=dynamic_batch)
        return OnnxFile(Path(path), precision, written.dynamic_batch, written.notes)
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "float.onnx"
        written = to_onnx(plain, batches[0], between, dynamic_batch=dynamic_batch)
        quantized = quantize_onnx(
            between,
            path,
            batches,
            weight_scales=weight_scales(model),
            input_grids=input_grids(model),
            parameters=dict(plain.named_parameters(remove_duplicate=False)),
        )
    return OnnxFile(Path(path), precision, written.dynamic_batch, (*written.notes, *quantized.notes))


def weight_scales(model: nn.Module) -> dict[str, Tensor]:
    """Scales [1] or [out] of the coded weights that int8 can hold exactly, by parameter name."""
    from enxuto.layers.coded import coded_tensors
    from enxuto.layers.grids import AffineTensor

    return {
        name: tensor.scale
        for name, tensor in coded_tensors(model).items()
        if isinstance(tensor, AffineTensor) and tensor.grid.per in ("tensor", "channel") and len(tensor.shape) > 1
    }


def input_grids(model: nn.Module) -> Mapping[str, tuple[float, int]]:
    """Scale and zero point (0...255) of the calibrated layer inputs, by layer path."""
    from enxuto.layers.activations import ActivationGrid

    grids = {path: getattr(module, "input_grid", None) for path, module in model.named_modules(remove_duplicate=False)}
    return {path: (float(grid.scale), int(grid.zero_point)) for path, grid in grids.items() if isinstance(grid, ActivationGrid)}
