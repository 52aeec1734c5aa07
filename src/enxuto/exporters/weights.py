"""The matrices of a network on the grids of an int8 file, rounded by what the calibration batches say of their products."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.calibrate import input_ranges
from enxuto.encode import code_weights_
from enxuto.errors import TaskError
from enxuto.evidence.histograms import fitted_ranges
from enxuto.functional.affine import activation_grid
from enxuto.layers.affine import Affine
from enxuto.layers.coded import coded_tensors, weight_names
from enxuto.layers.traits import traits
from enxuto.rounding import Rounding, rounded_by
from enxuto.sites import sites
from enxuto.surgery import borrowed, to_float
from enxuto.task import Task

BITS = 7  # two products of 8 by 8 bits overflow the 16 that processors without an int8 dot product add them in


def weight_scales(model: nn.Module, bits: int = 8) -> dict[str, Tensor]:
    """Scales [1] or [out] of the coded weights of at most `bits` that int8 can hold exactly, by parameter name."""
    return {
        name: scale
        for name, tensor in coded_tensors(model).items()
        if len(tensor.shape) > 1 and tensor.grid.bits <= bits and (scale := tensor.integer_scales()) is not None
    }


def on_grids(model: nn.Module, batches: Sequence[Batch], rounding: Rounding) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """A plain copy whose matrices lie on grids that int8 holds everywhere, their scales by parameter name, and what to know.

    A weight keeps a grid of 7 bits or fewer, per channel or tensor; any other gets 7 bits per channel.
    """
    plain = to_float(model)
    tables = {f"{path}.weight" for path, module in plain.named_modules() if isinstance(module, nn.Embedding)}
    kept = {name: scale for name, scale in weight_scales(model).items() if name in tables} | weight_scales(model, BITS)
    if not any(weight_names(module) for module in plain.modules()):
        return plain, kept, []
    made = borrowed(plain)
    chosen = [each for each in sites(made) if traits(each.module).integer and each.key not in kept]
    notes = _shortened(model, kept)
    try:
        rounded = rounded_by(rounding, plain, Task(plain, calibration=batches), chosen)
        code_weights_(chosen, Affine(BITS), rounded=rounded)
    except TaskError as error:  # outputs that are not finite, say: a file may have them
        made = borrowed(plain)
        notes.append(f"weights are rounded to nearest, not by the calibration batches: {error}")
    return to_float(made), kept | weight_scales(made, BITS), notes


def clipped_inputs(model: nn.Module, batches: Sequence[Batch]) -> dict[str, tuple[float, int]]:
    """Grids (scale, zero point) of the inputs, by path, of layers that lose least where a part of what was seen is cut."""
    paths = {path for path, module in model.named_modules() if traits(module).product}
    try:
        fitted, whole = fitted_ranges(model, batches, "best", paths), input_ranges(model, batches)
    except TaskError:  # outputs that are not finite: the whole range is safe
        return {}
    return {path: activation_grid(*span) for path, span in fitted.items() if span != whole[path]}


def _shortened(model: nn.Module, kept: dict[str, Tensor]) -> list[str]:
    names = [name for name in weight_scales(model) if name not in kept]
    if not names:
        return []
    some = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} weights use all 8 bits and were rounded to 7, which no processor overflows on: {some}"]
