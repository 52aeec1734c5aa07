"""A network as a file that a runtime takes: float32 .onnx, or int8 .onnx on the grids the network already carries."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from enxuto.errors import ExportError
from enxuto.files import whole_file

if TYPE_CHECKING:
    from torch import nn

    from enxuto.batches import Batch
    from enxuto.rounding import Rounding

Precision = Literal["fp32", "int8"]
LARGE_ERROR = 0.1  # of an output, as a share of its norm or of how far it differs between samples: 20 dB; beyond, a note says so
RUINOUS_ERROR = 0.5  # 6 dB; such a file is no version of the network and is not written
_REMEDY = {"int8": "ship float32", "fp32": "give calibration batches like those whose values the network was compressed for"}


@dataclass(frozen=True)
class OnnxFile:
    """An .onnx file that was written, run and compared with torch; `notes` say what a reader must know about it."""

    path: Path
    precision: Precision
    dynamic_batch: bool
    notes: tuple[str, ...] = ()
    error: float = field(default=0.0, compare=False)  # of its outputs, against the model in torch on the calibration batches


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    calibration: Iterable[Batch],
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
    rounding: Rounding = "gptq",
) -> OnnxFile:
    """Writes a network, coded or plain, as one .onnx file.

    fp32: coded weights are decoded. int8: weights keep the grids they have (7 bits or fewer, one scale per tensor or
    channel), others get 7 bits per channel and codes that change their products with the batches least, or with
    rounding="nearest" the nearest; layers whose inputs were calibrated keep those grids, everything else is calibrated.
    Every file is compared with the model on all batches. One whose outputs are off by more than a tenth of their size, or of what
    they differ between samples, gets a note, which for int8 names the layer; one that is off by half the size is refused.
    Raises: ExportError when the model cannot be exported or precision is unknown; RangeError when rounding is; OutputError
    when the file cannot be written. Nothing is written then.
    """
    from enxuto.exporters.compared import distance, worst_layer
    from enxuto.exporters.int8 import quantize_onnx
    from enxuto.exporters.onnx import to_onnx
    from enxuto.exporters.weights import clipped_inputs, on_grids
    from enxuto.rounding import check_rounding
    from enxuto.surgery import to_float

    check_rounding(rounding)

    if precision not in ("fp32", "int8"):
        raise ExportError(f"precision={precision!r} is not known for '{Path(path).name}'; use 'fp32' or 'int8'.")
    if not hasattr(calibration, "__iter__") or hasattr(calibration, "ndim"):
        kind = type(calibration).__name__
        raise ExportError(f"calibration of '{Path(path).name}' is {kind}, not a list of batches; write calibration=[batch].")
    batches = list(calibration)
    if not batches:
        raise ExportError(f"'{Path(path).name}' needs sample inputs and calibration holds no batch; give at least one.")
    plain, scales, notes = (to_float(model), {}, []) if precision == "fp32" else on_grids(model, batches, rounding)
    with whole_file(path) as made, _called(made, path), tempfile.TemporaryDirectory() as folder:
        exact = made if precision == "fp32" else Path(folder) / "float.onnx"
        written = to_onnx(plain, batches[0], exact, others=batches[1:], dynamic_batch=dynamic_batch)
        notes += written.notes
        if precision == "int8":
            grids = clipped_inputs(plain, batches) | input_grids(model)
            parameters = dict(plain.named_parameters(remove_duplicate=False))
            notes += quantize_onnx(exact, made, batches, weight_scales=scales, input_grids=grids, parameters=parameters).notes
        far = distance(model, made, batches)
        if not max(far.size, far.spread) <= LARGE_ERROR:
            words = f"its outputs are {far.words}" + (f", and {worst_layer(exact, made, batches[0])}" if exact != made else "")
            if not far.size <= RUINOUS_ERROR:
                raise ExportError(
                    f"the {precision} version of '{Path(path).name}' is no version of the network: {words}; {_REMEDY[precision]}."
                )
            notes.append(words)
    return OnnxFile(Path(path), precision, written.dynamic_batch, tuple(notes), far.size)


@contextmanager
def _called(made: Path, path: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong with a file in the making is told of the one that was asked for."""
    try:
        yield
    except ExportError as error:
        raise ExportError(str(error).replace(made.name, Path(path).name)) from error


def input_grids(model: nn.Module) -> dict[str, tuple[float, int]]:
    """Scale and zero point (0...255) of the calibrated layer inputs, by layer path."""
    from enxuto.layers.activations import ActivationGrid

    grids = {path: getattr(module, "input_grid", None) for path, module in model.named_modules(remove_duplicate=False)}
    return {path: (float(grid.scale), int(grid.zero_point)) for path, grid in grids.items() if isinstance(grid, ActivationGrid)}
