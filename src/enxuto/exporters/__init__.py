"""A network as a file that a runtime takes: float32 .onnx, or one of 8 or 4 bits on the grids the network already carries."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from enxuto.errors import ExportError, RangeError
from enxuto.files import whole_file

if TYPE_CHECKING:
    from torch import nn

    from enxuto.batches import Batch
    from enxuto.rounding import Rounding

Precision = Literal["fp32", "int8", "int8-dynamic", "int4"]
LARGE_ERROR = 0.1  # of an output, as a share of its norm or of how far it differs between samples: 20 dB; beyond, a note says so
RUINOUS_ERROR = 0.5  # 6 dB; such a file is no version of the network and is not written
_REMEDY = {False: "ship float32", True: "give calibration batches like those whose values the network was compressed for"}


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
    rounding: Rounding | None = None,
    max_error: float = LARGE_ERROR,
) -> OnnxFile:
    """Writes a network, coded or plain, as one .onnx file.

    fp32: coded weights are decoded. int8: products on integers; weights keep the grids they have (7 bits or fewer, one scale
    per tensor or channel), others get 7 bits per channel, and codes that change their products with the batches least
    (rounding="gptq") or the nearest ("nearest"): unless it is said, whichever leaves the outputs nearer. Layers whose inputs were
    calibrated keep those grids, everything else is calibrated. LSTMs find the range of their inputs at each call, and
    "int8-dynamic" does so in every matrix product. "int4": Linear weights of 4 bits, with a scale for a block of inputs, as the
    runtime's own operator takes them; grids that it can take are kept. What no small operator computes has weights of 8 bits and
    computes in float.
    Every file is compared with the model on all batches. Where outputs are off by more than `max_error` of their size, or of what
    they differ between samples, the layers that add most are computed more exactly, and notes say which, how, and what they would
    cost. What is still off by more than a tenth gets a note, and what is off by half the size is refused.
    Raises: ExportError when the model cannot be exported or precision is unknown; RangeError when rounding is, or max_error
    outside (0, 1); OutputError when the file cannot be written. Nothing is written then.
    """
    from enxuto.checks import named, within
    from enxuto.exporters.compared import distance, worst_layer
    from enxuto.exporters.onnx import to_onnx
    from enxuto.exporters.settle import Settling
    from enxuto.rounding import check_rounding
    from enxuto.surgery import to_float

    check_rounding(rounding or "nearest")
    if not within(max_error, "(0, 1)"):
        raise RangeError(f"{named('max_error', max_error)} is a fraction of the outputs in (0, 1); use for example 0.05.")
    batches = _checked(path, calibration, precision)
    with whole_file(path) as made, _called(made, path), tempfile.TemporaryDirectory() as folder:
        exact, notes = made, []
        if precision == "fp32":
            written = to_onnx(to_float(model), batches[0], made, others=batches[1:], dynamic_batch=dynamic_batch)
            far = distance(model, made, batches)
        else:
            small = Settling(model, batches, precision, rounding, Path(folder), dynamic_batch=dynamic_batch)
            far = small.settle(made, max_error)
            written, exact, notes = small.written, small.exact, small.told()
            if made.stat().st_size > exact.stat().st_size:
                notes.append(f"the file is larger than in float32, {exact.stat().st_size:,} bytes; ship that")
        if not far.worst <= LARGE_ERROR:
            words = f"its outputs are {far.words}" + (f", and {worst_layer(exact, made, batches[0])}" if exact != made else "")
            if not far.size <= RUINOUS_ERROR:
                remedy = _REMEDY[precision == "fp32"]
                raise ExportError(
                    f"the {precision} version of '{Path(path).name}' is no version of the network: {words}; {remedy}."
                )
            notes.append(words)
    return OnnxFile(Path(path), precision, written.dynamic_batch, (*written.notes, *notes), far.size)


def _checked(path: str | os.PathLike[str], calibration: Iterable[Batch], precision: str) -> list[Batch]:
    """The batches. Raises: ExportError when there is none, or the precision is not known."""
    name = Path(path).name
    if precision not in get_args(Precision):
        raise ExportError(f"precision={precision!r} is not known for '{name}'; use {_either(get_args(Precision))}.")
    if not hasattr(calibration, "__iter__") or hasattr(calibration, "ndim"):
        raise ExportError(
            f"calibration of '{name}' is {type(calibration).__name__}, not a list of batches; write calibration=[batch]."
        )
    batches = list(calibration)
    if not batches:
        raise ExportError(f"'{name}' needs sample inputs and calibration holds no batch; give at least one.")
    return batches


def _either(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:-1])) + f" or {values[-1]!r}"


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
