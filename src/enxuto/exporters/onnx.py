"""A torch model as an .onnx file in float32: the dynamo exporter, a tidy graph, and a run against torch before it
counts.

Nothing is quantized here (int8.py does that). Nodes carry the path of their layer as their name and initializers the
name of their parameter.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from logging import ERROR, getLogger
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from enxuto.batches import Batch, arguments, batch_size, is_packed, leaves, mapped, resized, rows
from enxuto.calls import call, evaluating
from enxuto.errors import ExportError
from enxuto.evaluation.onnxmodel import STRUCTURE, OnnxModel, structure
from enxuto.exporters.messages import save, size_bytes
from enxuto.exporters.names import name_outputs_
from enxuto.exporters.operators import table_made_once
from enxuto.exporters.recurrent import any_length
from enxuto.files import whole_file
from enxuto.groups.trace import silent
from enxuto.outputs import output_names, returned_as

TOLERANCE = 1e-3  # largest difference to torch, relative to the largest output; float32 kernels differ by 1e-7 to 1e-5
WITHOUT_KERNELS = (torch.bfloat16,)
_BRANCHES = (GuardOnDataDependentSymNode, ConstraintViolationError, DataDependentOutputException, DynamicOutputShapeException)
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
LARGEST_FILE_BYTES = 2**31 - 1  # a protobuf message holds no more


@dataclass(frozen=True)
class Exported:
    """What was found out while a file was written."""

    dynamic_batch: bool
    difference: float  # largest to torch, relative to the largest output
    notes: tuple[str, ...] = ()


def to_onnx(
    model: nn.Module, sample: Batch, path: str | os.PathLike[str], *, others: Sequence[Batch] = (), dynamic_batch: bool = True
) -> Exported:
    """Writes the model as one .onnx file whose outputs were compared with torch's on the sample and on other lengths.

    The batch axis (the first axis of every tensor as long as the first one) is free where the model allows it; where it
    does not, the file has the sample's batch size and a note says so. Axes that differ in `others`, more batches of the
    same inputs, are free too.
    Raises: ExportError when the exporter or ONNX Runtime does not take the model, or the outputs differ by more than
    1e-3 of the largest; OutputError when the file cannot be written. Nothing is written then.
    """
    _check_dtypes(model)
    if any(map(is_packed, (sample, *others))):
        raise ExportError(
            f"{type(model).__name__} takes packed sequences, which no graph of ONNX does; give padded tensors "
            "[batch, time, ...] to a forward that takes them."
        )
    with evaluating(model):
        outputs = call(model, sample)
    batches = (sample, *others)
    lengths = _lengths(batches)
    notes: list[str] = []
    with whole_file(path) as temporary:
        if dynamic_batch and batch_size(sample):
            try:
                _write(model, batches, outputs, temporary, lengths, dynamic=True)
                several = [*_of_all_lengths(batches, lengths), *_of_another_size(model, sample)]
                return Exported(True, max(_difference(model, part, temporary) for part in several))
            except ExportError as error:
                reason = str(error).split("; ")[0]
                fixed = f"the first axis (the batch) of the .onnx file is fixed at {batch_size(sample)}"
                notes.append(f"{fixed}; a free one failed: {reason}")
        _write(model, batches, outputs, temporary, lengths, dynamic=False)
        worst = max(_difference(model, part, temporary) for part in _of_all_lengths(batches, lengths))
        return Exported(False, worst, tuple(notes))


def _check_dtypes(model: nn.Module) -> None:
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype in WITHOUT_KERNELS:
            raise ExportError(
                f"'{path}' is {str(tensor.dtype).removeprefix('torch.')}, for which ONNX Runtime has no kernels on a processor; "
                "compress and export model.float(), with float32 inputs."
            )


Lengths = Mapping[tuple[int, int], tuple[int, ...]]
"""(number of the tensor, axis) -> its length in each batch, for axes that are not the batch and differ."""


def _lengths(batches: Sequence[Batch]) -> Lengths:
    shapes = [[tuple(tensor.shape) for tensor in leaves(batch)] for batch in batches]
    sizes = [batch_size(batch) for batch in batches]
    for number, shape in enumerate(shapes, 1):
        if list(map(len, shape)) != list(map(len, shapes[0])):
            raise ExportError(
                f"calibration batch {number} holds tensors {shape} and the first {shapes[0]}, which one graph cannot take; "
                "give batches with the same tensors, of any length."
            )
    found = {}
    for number, several in enumerate(zip(*shapes, strict=True)):
        batched = all(shape[:1] == (size,) for shape, size in zip(several, sizes, strict=True))
        for axis, length in enumerate(zip(*several, strict=True)):
            if len(set(length)) > 1 and not (batched and axis == 0):
                found[number, axis] = length
    return found


def _write(
    model: nn.Module, batches: Sequence[Batch], outputs: Any, path: os.PathLike[str], lengths: Lengths, *, dynamic: bool
) -> None:
    clear = [batches[n] for n in range(len(batches)) if all(length[n] > 1 for length in lengths.values())] or [batches[0]]
    short = sorted(clear, key=lambda batch: sum(tensor.numel() for tensor in leaves(batch)))  # far from what a table allows
    ways = [(clear[0], False)] + ([(batch, True) for batch in short] if lengths else [])  # an axis of one is taken for fixed
    exported, failure = None, None
    for number, (given, guessed) in enumerate(ways, 1):
        given = resized(given, 2) if dynamic and batch_size(given) == 1 else given
        try:
            given = mapped(given, _without_gaps)
            positional, named = arguments(given)
            with (
                _quiet(),
                silent(),
                table_made_once(),
                evaluating(model),
                returned_as(model, _in_a_row),
                any_length() if lengths else nullcontext(),
            ):
                free = _free_axes(given, lengths, dynamic=dynamic, guessed=guessed).dynamic_shapes(model, positional, named)
                program = torch.export.export(model, positional, named, dynamic_shapes=free)
                exported = torch.onnx.export(program, dynamo=True, verbose=False)
            break
        except Exception as error:  # tracing runs the model, and the exporter raises whatever comes to it
            failure = failure or error
            if number == len(ways):
                reason = _first(failure)
                words = textwrap.shorten(_COLOURS.sub("", str(reason)), 300, placeholder=" ...")
                raise ExportError(
                    f"torch cannot export {type(model).__name__} to ONNX ({type(reason).__name__}: {words}); "
                    f"{_remedy(model, reason)}."
                ) from failure
    assert exported is not None
    proto = _tidy(exported.model_proto)
    for value in exported.model.graph.initializers.values():
        value.const_value = None  # the rules that rewrite graphs keep the last one, with its weights
    name_outputs_(proto.graph, output_names(outputs))
    helper.set_model_props(proto, {STRUCTURE: json.dumps(structure(outputs))})
    if size_bytes(proto) > LARGEST_FILE_BYTES:
        raise ExportError(f"{type(model).__name__} is over 2 GB as .onnx, more than one file can hold; compress it first.")
    save(proto, path)
    del program, exported
    gc.collect()  # they hold the weights, and each other


def _without_gaps(tensor: Tensor) -> Tensor:
    """The values in a storage of their own, its axes in the same order: what lies between those of a view would be a guard."""
    if tensor.layout != torch.strided:
        return tensor
    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    return tensor.detach().permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def _free_axes(given: Batch, lengths: Lengths, *, dynamic: bool, guessed: bool) -> torch.export.ShapesCollection:
    """The axes of each tensor that may have any length. `guessed` leaves it to torch what holds of them, where a network cuts a
    table to the length that it is given: those that were compared are right."""
    shapes = torch.export.ShapesCollection()
    names = {length: f"length_{number}" for number, length in enumerate(dict.fromkeys(lengths.values()), 1)}
    dims = {length: torch.export.Dim.AUTO if guessed else torch.export.Dim(name) for length, name in names.items()}
    batch = torch.export.Dim("batch")
    for number, tensor in enumerate(leaves(given)):
        free = {axis: dims[length] for (owner, axis), length in lengths.items() if owner == number}  # those that agree are one
        if dynamic and tensor.dim() and len(tensor) == batch_size(given):
            free = {0: batch} | free
        if free:
            shapes[tensor] = free
    return shapes


def _in_a_row(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors alone; `STRUCTURE` says what they were in."""
    return tuple(leaves(outputs))


def _first(error: BaseException) -> BaseException:
    """The first of a chain of errors, from which the others were raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _remedy(model: nn.Module, reason: BaseException) -> str:
    """What would work, by what torch stumbled over."""
    from torch._dynamo.exc import UserError, UserErrorType

    told = reason.error_type if isinstance(reason, UserError) else None
    if isinstance(reason, _BRANCHES) or told in (UserErrorType.CONSTRAINT_VIOLATION, UserErrorType.DYNAMIC_CONTROL_FLOW):
        return "write its forward without branches on values and sizes of tensors"
    if isinstance(reason, torch.onnx.OnnxExporterError):
        return "write its forward with operators that ONNX has"
    graph = fx.GraphModule(nn.Module(), fx.Graph())  # a graph takes the tensors and layers of the network as attributes
    for kind, held in (("buffer", model._buffers), ("parameter", model._parameters), ("layer", model._modules)):
        if taken := [name for name in held if hasattr(graph, name)]:
            return f"rename the {kind} '{taken[0]}', a name that torch's own graphs have already"
    return "write its forward so that torch.export can follow it, with operators of torch alone"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own deprecations, its word on torchvision and what its folding of constants tried in vain."""
    loggers = [getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", message="The tensor attributes? .*assigned during export", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tidy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with layer paths as node names, plain pooling, without the exporter's notes, which hold file paths."""
    taken: Counter[str] = Counter()
    for node in proto.graph.node:
        name = f"{_layer(node)}/{node.op_type}".lstrip("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"
    _plain_pooling(proto.graph)
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.value_info]:
        del item.metadata_props[:]
    for item in [*proto.graph.input, *proto.graph.output]:
        del item.metadata_props[:]
    for item in proto.functions:
        del item.metadata_props[:]
        item.doc_string = ""
    return proto


def _layer(node: onnx.NodeProto) -> str:
    """The path of the layer a node belongs to: that of its weight, else where torch says it was called."""
    weight = node.input[1] if node.op_type.startswith(("Conv", "Gemm")) else ""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = next((item.value for item in node.metadata_props if item.key == "pkg.torch.onnx.name_scopes"), "[]")
    path: list[str] = ast.literal_eval(scopes)[:-1]
    return path[-1] if path and not path[-1].startswith("_empty_nn_module") else ""


def _plain_pooling(graph: onnx.GraphProto) -> None:
    """ReduceMean over both image axes becomes GlobalAveragePool, which has an integer kernel; ReduceMean has none."""
    constants = {item.name: item for item in graph.initializer}
    ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in [*graph.input, *graph.value_info]}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = {int(axis) % 4 for axis in numpy_helper.to_array(constants[node.input[1]]).reshape(-1)}
        if ranks.get(node.input[0]) != 4 or axes != {2, 3}:
            continue
        keeps = all(item.i for item in node.attribute if item.name == "keepdims")
        source, target, name = node.input[0], node.output[0], node.name
        pooled = target if keeps else f"{target}.pooled"
        made = [helper.make_node("GlobalAveragePool", [source], [pooled], name=name)]
        if not keeps:
            made.append(helper.make_node("Flatten", [pooled], [target], name=f"{name}.flatten", axis=1))
        del graph.node[index]
        for offset, item in enumerate(made):
            graph.node.insert(index + offset, item)
    used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]  # a list without it would be a copy of all weights


def _of_all_lengths(batches: Sequence[Batch], lengths: Lengths) -> list[Batch]:
    """The first batch of every combination of lengths."""
    found: dict[tuple[int, ...], Batch] = {}
    for number, batch in enumerate(batches):
        found.setdefault(tuple(length[number] for length in lengths.values()), batch)
    return list(found.values())


def _of_another_size(model: nn.Module, sample: Batch) -> list[Batch]:
    """The first row of the sample alone, where the model takes that: a batch axis is free only if two sizes work."""
    other = resized(sample, 2) if batch_size(sample) == 1 else rows(sample, 0, 1)
    try:
        with evaluating(model):
            call(model, other)
    except (RuntimeError, ValueError, IndexError):
        return []  # a sample with an axis that is as long as the batch by chance
    return [other]


def _difference(model: nn.Module, batch: Batch, path: os.PathLike[str]) -> float:
    """The largest difference between the file and torch on a batch, relative to the largest output.

    Raises: ExportError when it is beyond TOLERANCE, or the shapes differ.
    """
    with evaluating(model):
        expected = [tensor.detach().cpu() for tensor in leaves(call(model, batch))]
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exporter wrote an invalid graph: {error}; report the model's layers.") from error
    doubles = [name for name, tensor in model.named_parameters() if tensor.dtype == torch.float64]
    try:
        found = list(leaves(call(OnnxModel(path), batch)))
    except ExportError as error:
        if not doubles:
            raise
        raise ExportError(
            f"'{doubles[0]}' is float64, for which ONNX Runtime lacks kernels that {type(model).__name__} needs "
            f"({str(error).partition(': ')[2].partition('; ')[0]}); compress and export model.float(), with float32 inputs."
        ) from error
    worst = 0.0
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one.shape != other.shape:
            raise ExportError(
                f"output {number} has shape {tuple(other.shape)} in ONNX Runtime and {tuple(one.shape)} in torch; "
                "write sizes in forward as x.shape[...], not as numbers."
            )
        a, b = one.double().numpy(), other.double().numpy()
        finite = np.isfinite(a)
        same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
        a, b = a[finite], b[finite]
        far = float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-12)) if same else np.inf
        worst = max(worst, far if np.isfinite(far) else np.inf)
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the exported model differs from torch by {worst:.2g} of its largest output, more than {TOLERANCE:g}; "
            "look for an operator whose ONNX meaning differs, or random numbers in forward."
        )
    return worst
