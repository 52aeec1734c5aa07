"""The matrices of a network on the grids of an int8 file, rounded by what the calibration batches say of their products."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from enxuto.batches import Batch
from enxuto.encode import code_weights_
from enxuto.errors import TaskError
from enxuto.evaluation.session import Array
from enxuto.evidence.histograms import clipped_ranges
from enxuto.exporters.graphs import floats
from enxuto.exporters.messages import save
from enxuto.functional.affine import activation_grid
from enxuto.layers.affine import Affine, AffineTensor
from enxuto.layers.coded import coded_tensors, weight_names
from enxuto.layers.traits import traits
from enxuto.rounding import Rounding, rounded_by
from enxuto.sites import Site, sites
from enxuto.surgery import borrowed, to_float
from enxuto.task import Task

BITS = 7  # two products of 8 by 8 bits overflow the 16 that processors without an int8 dot product add them in
STORED_BITS = 8  # of weights that are read in float
FEW_BITS = 4
BLOCKS = (32, 16)  # inputs that may share a scale of 4 bits, in the runtime's own operator


def weight_scales(model: nn.Module, bits: int = 8) -> dict[str, Tensor]:
    """Scales [1] or [out] of the coded weights of at most `bits` that int8 can hold exactly, by parameter name."""
    return {
        name: scale
        for name, tensor in coded_tensors(model).items()
        if len(tensor.shape) > 1 and tensor.grid.bits <= bits and (scale := tensor.integer_scales()) is not None
    }


def on_grids(
    model: nn.Module, batches: Sequence[Batch], rounding: Rounding, precision: str = "int8"
) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """A plain copy whose weights lie on grids that the file holds, their scales by parameter name, and what to know.

    A weight keeps a grid that it has if the file can have it too. Else it gets the bits of `_bits`, a scale a channel, or with
    4 bits one for each block.
    """
    plain = to_float(model)
    kept = _kept(model, precision)
    if not any(weight_names(module) for module in plain.modules()):
        return plain, kept, []
    made = borrowed(plain)
    wanted: dict[Affine, list[Site]] = {}
    for each in sites(made):
        bits = _bits(each.module, precision)
        if bits and each.key not in kept and not each.looked_up:
            wanted.setdefault(_grid(each, bits), []).append(each)
    notes = _shortened(model, kept, precision)
    try:
        rounded = rounded_by(rounding, plain, Task(plain, calibration=batches), [each for few in wanted.values() for each in few])
        for grid, chosen in wanted.items():
            code_weights_(chosen, grid, rounded=rounded)
    except TaskError as error:  # outputs that are not finite, say: a file may have them
        made = borrowed(plain)
        notes.append(f"weights are rounded to nearest, not by the calibration batches: {error}")
    return to_float(made), kept | _all_scales(made), notes


def restored(plain: nn.Module, model: nn.Module, paths: Collection[str]) -> nn.Module:
    """The plain copy of a model, but with the model's own weights in the layers at these paths."""
    if not paths:
        return plain
    made = borrowed(plain)
    own = {each.key: each for each in sites(to_float(model))}
    for each in sites(made):
        if each.path in paths and each.key in own:
            each.module._parameters[each.name] = nn.Parameter(own[each.key].read(), requires_grad=False)
    return made


def exchanged(path: Path, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> bool:
    """Puts other values of parameters in the place of the constants of a file that hold the old ones, as they are or transposed.

    False, and nothing is written, where one is not in a single constant alone (the exporter folded or stacked it), or another
    name stood for the same tensor.
    """
    proto = onnx.load(path)
    constants = floats(proto.graph)
    for name, tensor in new.items():
        if tensor is old[name] or torch.equal(tensor, old[name]):
            continue
        if any(each is old[name] and new[other] is not tensor for other, each in old.items()):
            return False
        was, now = (each.detach().cpu().numpy() for each in (old[name], tensor))
        found = {key: as_it_is for key, item in constants.items() if (as_it_is := _held_as(item, was)) is not None}
        if len(found) != 1:
            return False
        [(key, as_it_is)] = found.items()
        item = constants.pop(key)
        item.ClearField("float_data")
        item.raw_data = np.ascontiguousarray(now if as_it_is else now.T).tobytes()
    save(proto, path)
    return True


def _held_as(item: onnx.TensorProto, values: Array) -> bool | None:
    """True for a constant of these very values, False for one that holds them transposed, None for any other."""
    if tuple(item.dims) not in (values.shape, values.shape[::-1]):
        return None
    held = numpy_helper.to_array(item)
    if np.array_equal(held, values):
        return True
    return False if values.ndim == 2 and np.array_equal(held, values.T) else None


def _bits(module: nn.Module, precision: str) -> int | None:
    """How many bits the weights of a layer have in a file: those that integers multiply 7, or 4; those that are only stored 8."""
    row = traits(module)
    if isinstance(module, (nn.RNNBase, nn.modules.conv._ConvTransposeNd)):
        return BITS if isinstance(module, nn.LSTM) else STORED_BITS
    if not row.integer:
        return STORED_BITS if row.looked_up else None
    if isinstance(module, nn.modules.conv._ConvNd):
        return BITS if precision == "int8" else STORED_BITS
    return FEW_BITS if precision == "int4" else BITS


def _grid(weight: Site, bits: int) -> Affine:
    inputs = weight.read().flatten(1).shape[1]
    block = next((size for size in BLOCKS if inputs % size == 0), 0)
    return Affine(bits, "group", block) if bits == FEW_BITS and block else Affine(bits)


def _kept(model: nn.Module, precision: str) -> dict[str, Tensor]:
    """The scales of coded weights that a file of this precision holds exactly, by parameter name."""
    found, tensors = {}, coded_tensors(model)
    for name, scales in _all_scales(model).items():
        layer, own = model.get_submodule(name.rpartition(".")[0]), tensors[name].grid.bits
        in_blocks = own <= FEW_BITS and (traits(layer).looked_up or precision == "int4")
        if own <= (_bits(layer, precision) or 0) and (scales.ndim < 2 or in_blocks):
            found[name] = scales
    return found


def _all_scales(model: nn.Module) -> dict[str, Tensor]:
    """Scales [1] or [out], and [out, groups] where blocks of the runtime's operator divide the groups, by parameter name."""
    found = weight_scales(model)
    for name, tensor in coded_tensors(model).items():
        if (
            isinstance(tensor, AffineTensor)
            and len(tensor.shape) == 2
            and tensor.grid.per == "group"
            and tensor.grid.group % BLOCKS[-1] == 0
        ):
            found[name] = tensor.scale.float().view(tensor.shape[0], -1)
    return found


def clipped_inputs(model: nn.Module, batches: Sequence[Batch], known: Collection[str] = ()) -> dict[str, tuple[float, int]]:
    """Grids (scale, zero point) of the inputs, by path, of layers that lose least where a part of what was seen is cut.

    Layers at the paths that are `known` have grids already and are not looked at.
    """
    paths = {path for path, module in model.named_modules() if traits(module).product and path not in known}
    try:
        cut = clipped_ranges(model, batches, paths) if paths else {}
    except TaskError:  # outputs that are not finite: the whole range is safe
        return {}
    return {path: activation_grid(*span) for path, span in cut.items()}


def _shortened(model: nn.Module, kept: dict[str, Tensor], precision: str) -> list[str]:
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in weight_scales(model) if name not in kept}
    names = [name for name, layer in layers.items() if _bits(layer, precision) == BITS]
    if not names:
        return []
    some = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} weights use all 8 bits and were rounded to 7, which no processor overflows on: {some}"]
