"""Reads the data flow of one inference from a model, as a device's runtime would run it, without running anything.

Weights and whatever is computed from them alone are no buffers: they lie in flash. Views that leave the values in their order
are no operations; one that moves them (a transpose, a slice out of the middle) is a copy, because the kernels of small devices
read dense tensors. A batch norm right after a convolution or Linear is taken as folded (`Fold` does it), dropout as absent.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from enxuto.batches import Batch, rows
from enxuto.calls import attempt, evaluating
from enxuto.checks import named
from enxuto.errors import ExportError, RangeError, TaskError
from enxuto.groups.trace import Untraceable, export, module_path
from enxuto.layers.coded import sources
from enxuto.memory.flow import Buffer, Flow, Operation
from enxuto.surgery import to_float

Bits = Literal[8, 32]
Value = str | tuple["Value", ...] | None  # the buffer that holds a tensor, several of them, or None for a constant

FREE = {"aten.dropout", "aten.alpha_dropout", "aten.feature_dropout", "aten.lift_fresh_copy", "aten.detach", "aten.alias"}
NORMS = {"aten.batch_norm", "aten._native_batch_norm_legit_no_training"}
POINTWISE = {"aten.prelu", "aten.hardswish", *NORMS}  # element by element, though torch does not tag them so
PRODUCTS = {"aten.linear", "aten.addmm", "aten.mm", "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"}
CONVOLUTIONS = {"aten.conv1d", "aten.conv2d", "aten.conv3d"}
GATES = {
    f"aten.{kind}{cell}": gates
    for kind, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    for cell in ("", "_cell")
}
CASTS = {"aten.to", "aten._to_copy", "aten.type_as"}
INT16_BYTES = 2
COLUMNS = 2  # patches that CMSIS-NN unfolds at a time


def read_flow(model: nn.Module, batch: Batch, *, bits: Bits = 32) -> Flow:
    """What one inference of a model does with memory, for the first sample of a batch.

    Units: bytes; a float takes 4 with `bits=32` and 1 with `bits=8`, an integer (token ids) its own size but at most 4.
    With 8 bits three things stay wider: the columns that a convolution kernel unfolds (16 bits, two patches at a time, none
    for 1 x 1), and the state and gates of LSTM, GRU and RNN (16 bits). Accumulators of 32 bits live in registers. Of attention
    the scores of all heads are counted. What torch calls in place is so where nobody else needs the old values.
    Raises: RangeError when bits is neither 8 nor 32; TaskError when the model fails on the batch; ExportError when torch.export
    cannot follow the model.
    Source: Lai, Suda, Chandra 2018, CMSIS-NN: efficient neural network kernels for Arm Cortex-M CPUs (the unfolded columns).
    """
    return flow_of(exported(model, batch), bits=bits)


def exported(model: nn.Module, batch: Batch) -> ExportedProgram:
    """The graph of one sample through the plain float layers of a model, coded or not.

    Raises: TaskError when the model is none or fails on the batch; ExportError when torch.export cannot follow it.
    """
    model, sample = plain(model), rows(batch, 0, 1)
    try:
        return export(model, sample)
    except Untraceable as error:
        with evaluating(model):
            attempt(model, batch, "the batch")  # a wrong one is no fault of the export
        raise ExportError(
            f"the memory of {type(model).__name__} cannot be laid out for one sample: {error}; "
            "a forward works that returns tensors in tuples, lists, dicts or dataclasses and whose steps do not depend on the "
            "values of its inputs, called with a batch of 1."
        ) from error


def plain(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with plain float layers where some are coded. Raises: TaskError when it is no model."""
    if not isinstance(model, nn.Module):
        raise TaskError(f"the model is {type(model).__name__}, not a torch.nn.Module; pass the network itself.")
    return to_float(model) if any(sources(module) for module in model.modules()) else model


def folded_norms(program: ExportedProgram) -> set[str]:
    """The paths of the batch norms that read a convolution or Linear and nothing else does: the ones the flow leaves out."""
    return {module_path(node) for node in program.graph.nodes if node.op == "call_function" and _is_folded(node)}


def flow_of(program: ExportedProgram, *, bits: Bits = 32) -> Flow:
    """The flow of an exported graph. Raises: RangeError when bits is neither 8 nor 32."""
    if bits not in (8, 32) or isinstance(bits, bool):
        raise RangeError(f"{named('bits', bits)} of activations are not known; use 32 (floats) or 8 (int8).")
    return _Reader(program, bits).read()


class _Reader:
    """Walks the graph once, node by node, and remembers which buffer holds what."""

    def __init__(self, program: ExportedProgram, bits: Bits) -> None:
        self.nodes = list(program.graph.nodes)
        self.bits = bits
        self.values: dict[fx.Node, Value] = {}
        self.buffers: list[Buffer] = []
        self.operations: list[Operation] = []
        self.inputs: list[str] = []
        kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
        written = {_root(node.args[0]) for node in self.nodes if _is_write(node) and isinstance(node.args[0], fx.Node)}
        entries = [node for node in self.nodes if node.op == "placeholder"]
        self.states = [node for node in entries if node in written and kinds.get(node.name) != InputKind.USER_INPUT]
        self.entries = {node for node in entries if kinds.get(node.name) == InputKind.USER_INPUT or node in self.states}

    def read(self) -> Flow:
        outputs: list[str] = []
        for node in self.nodes:
            if node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                outputs = [name for given in (*node.all_input_nodes, *self.states) for name in _names(self.values[given])]
            else:
                self.values[node] = self._entry(node) if node in self.entries else None
        return Flow(tuple(self.buffers), tuple(self.operations), tuple(self.inputs), tuple(dict.fromkeys(outputs)))

    def _entry(self, node: fx.Node) -> Value:
        if not isinstance(node.meta.get("val"), Tensor):
            return None
        self.inputs.append(self._new(node.name, node.meta["val"]))
        return self.inputs[-1]

    def _call(self, node: fx.Node) -> Value:
        if node.target is operator.getitem:
            source, index = self.values[node.args[0]], node.args[1]  # type: ignore[index]
            return source[index] if isinstance(source, tuple) and isinstance(index, int) else source
        reads = tuple(dict.fromkeys(name for given in node.all_input_nodes for name in _names(self.values[given])))
        if not reads or not any(isinstance(each, Tensor) for each in _tensors(node)):
            return None
        if _is_write(node):
            return self._write(node, reads)
        if self._is_free(node):
            source = self.values[node.all_input_nodes[0]]
            return tuple(source for _ in node.meta["val"]) if isinstance(node.meta["val"], list | tuple) else source
        return self._compute(node, reads)

    def _write(self, node: fx.Node, reads: tuple[str, ...]) -> Value:
        """An operator in place: whoever looked at the old buffer, through whatever view, looks at a new one from now on."""
        old, base = self.values[node.args[0]], _root(node.args[0])  # type: ignore[index]
        assert isinstance(base, fx.Node)
        if isinstance(old, str):
            before = next(buffer for buffer in self.buffers if buffer.name == old)
            self.buffers.append(Buffer(node.name, before.size_bytes, before.shape))
            self.values = {each: _renamed(value, old, node.name) for each, value in self.values.items()}
        else:  # torch.zeros(...), filled with what was computed
            self._new(node.name, base.meta["val"])
            self.values |= {each: node.name for each in self.values if _root(each) is base}
        overwritten = (old,) if isinstance(old, str) else ()
        self.operations.append(Operation(node.name, module_path(node) or node.name, reads, (node.name,), overwritten))
        return node.name

    def _is_free(self, node: fx.Node) -> bool:
        """True where the result is the first argument's own bytes."""
        name, given = _operator(node), node.all_input_nodes[0]
        if not isinstance(self.values[given], str):
            return False
        if name in FREE:
            return True
        if name in CASTS:
            return self._bytes(given.meta["val"]) == self._bytes(node.meta["val"])
        if name in NORMS:
            return _is_folded(node)
        return _is_view(node) and _keeps_order(node)

    def _compute(self, node: fx.Node, reads: tuple[str, ...]) -> Value:
        val, name = node.meta["val"], _operator(node)
        held: list[Value] = []
        for index, each in enumerate([val] if isinstance(val, Tensor) else val):
            used = isinstance(val, Tensor) or name in GATES or _is_read(node, index)
            label = node.name if isinstance(val, Tensor) else f"{node.name}.{index}"
            least = INT16_BYTES if name in GATES and index else 1  # the state, behind the sequence
            held.append(self._new(label, each, least) if used and isinstance(each, Tensor) else None)
        writes = [name for name in held if isinstance(name, str)]
        scratch = self._scratch_bytes(node)
        if scratch:
            self.buffers.append(Buffer(f"{node.name} (scratch)", scratch))
            writes.append(self.buffers[-1].name)
        place = module_path(node) or node.name
        self.operations.append(Operation(node.name, place, reads, tuple(writes), self._may_overwrite(node)))
        return held[0] if isinstance(val, Tensor) else tuple(held)

    def _may_overwrite(self, node: fx.Node) -> tuple[str, ...]:
        """The buffers of an element-wise operator's arguments, if every argument in them has the shape of the result."""
        if not _is_pointwise(node):
            return ()
        shape = node.meta["val"].shape
        same: dict[str, bool] = {}
        for given in node.all_input_nodes:
            for name in _names(self.values[given]):
                same[name] = same.get(name, True) and isinstance(given.meta["val"], Tensor) and given.meta["val"].shape == shape
        return tuple(name for name, is_same in same.items() if is_same)

    def _scratch_bytes(self, node: fx.Node) -> int:
        """What a kernel needs beside its inputs and outputs."""
        name, width = _operator(node), self.bits // 8
        shapes = [_shape(given) for given in node.args]
        if name in CONVOLUTIONS and self.bits == 8:
            weight = shapes[1]
            depthwise = weight[1] == 1 and _argument(node, "groups") != 1
            values = weight[2:].numel() * (weight[0] if depthwise else weight[1] * COLUMNS)
            return int(values * INT16_BYTES) if weight[2:].numel() > 1 else 0
        if name == "aten.scaled_dot_product_attention":
            return int(shapes[0][:-1].numel() * shapes[1][-2] * width)
        if name in GATES:
            results = [each for each in _tensors(node) if isinstance(each, Tensor)]
            state = results[-1] if name.endswith("_cell") else results[1][0]
            several = not name.endswith("_cell") and int(_argument(node, "num_layers")) > 1  # type: ignore[call-overload]
            between = self._bytes(results[0]) if several else 0  # what every second layer gives to the next
            return int(GATES[name] * state.numel() * max(width, INT16_BYTES) + between)
        return 0

    def _new(self, name: str, tensor: Tensor, least: int = 1) -> str:
        if not all(isinstance(size, int) for size in tensor.shape):
            raise ExportError(
                f"the shape of '{name}' is known only when the model runs, {tuple(map(str, tensor.shape))}; an arena needs "
                "shapes that do not depend on the values of the inputs."
            )
        self.buffers.append(Buffer(name, self._bytes(tensor, least), tuple(tensor.shape)))
        return name

    def _bytes(self, tensor: Tensor, least: int = 1) -> int:
        width = max(self.bits // 8, least) if tensor.is_floating_point() else min(tensor.element_size(), 4)
        return int(tensor.numel() * width)


def _operator(node: fx.Node) -> str:
    """The name without the overload, "aten.conv2d"."""
    return ".".join(str(node.target).split(".")[:2])


def _argument(node: fx.Node, name: str) -> object:
    """An argument of an operator by its name, or its default."""
    assert isinstance(node.target, OpOverload)
    arguments = node.target._schema.arguments
    position = [argument.name for argument in arguments].index(name)
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, arguments[position].default_value)


def _shape(given: object) -> torch.Size:
    value = given.meta.get("val") if isinstance(given, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else torch.Size()


def _names(value: Value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif value is not None:
        for each in value:
            yield from _names(each)


def _renamed(value: Value, old: str, new: str) -> Value:
    if isinstance(value, tuple):
        return tuple(_renamed(each, old, new) for each in value)
    return new if value == old else value


def _tensors(node: fx.Node) -> tuple[object, ...]:
    value = node.meta.get("val")
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _is_read(node: fx.Node, index: int) -> bool:
    """True if somebody reads this one of the results of an operator."""
    return any(user.target is not operator.getitem or (user.args[1] == index and bool(user.users)) for user in node.users)


def _is_write(node: fx.Node) -> bool:
    """True for an operator that changes its first argument."""
    if not isinstance(node.target, OpOverload) or not node.args:
        return False
    alias = node.target._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _is_view(node: fx.Node) -> bool:
    """True for an operator whose result may be another view of its only tensor argument."""
    if not isinstance(node.target, OpOverload) or len(node.all_input_nodes) != 1:
        return False
    return any(each.alias_info is not None for each in node.target._schema.returns)


def _keeps_order(node: fx.Node) -> bool:
    """True if a view of a dense tensor reads its values one after the other, without gaps: no bytes need to move."""
    given = node.all_input_nodes[0].meta["val"]
    dense = torch.empty(given.shape, dtype=given.dtype, device="meta")
    assert isinstance(node.target, OpOverload)
    seen = node.target(*(dense if isinstance(each, fx.Node) else each for each in node.args), **node.kwargs)
    parts = [seen] if isinstance(seen, Tensor) else list(seen)
    return all(part.is_contiguous() and part.numel() <= dense.numel() for part in parts)


def _is_folded(node: fx.Node) -> bool:
    given = node.args[0] if node.args else None
    folds = _operator(node) in NORMS and isinstance(given, fx.Node)
    return folds and isinstance(given, fx.Node) and _operator(given) in PRODUCTS and len(given.users) == 1


def _is_pointwise(node: fx.Node) -> bool:
    tagged = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
    return isinstance(node.meta["val"], Tensor) and (tagged or _operator(node) in POINTWISE)


def _root(node: object) -> object:
    """The placeholder or operator whose tensor a chain of views and writes looks at."""
    while isinstance(node, fx.Node) and (_is_view(node) or _is_write(node) or node.target is operator.getitem):
        node = node.args[0]
    return node
