"""Follows every channel through the exported graph of a model, without running or changing it."""

from __future__ import annotations

import operator
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from enxuto.batches import Batch, arguments, unclassed
from enxuto.calls import slow_attention
from enxuto.copies import copied
from enxuto.groups import shapes
from enxuto.groups.call import Call, fixed, substituted
from enxuto.groups.layers import LAYERS
from enxuto.groups.ledger import Ledger, Value, Weight
from enxuto.groups.shapes import Rule
from enxuto.outputs import returned_as
from enxuto.sites import first_names

Rules = Callable[[Call], Rule | None]


class Untraceable(Exception):
    """torch.export does not take the model; the message says why."""


@dataclass(frozen=True)
class Trace:
    """An exported model and what was learnt about its channels."""

    program: ExportedProgram
    ledger: Ledger
    names: Mapping[str, str]  # placeholder -> parameter or buffer


def rule_for(call: Call) -> Rule | None:
    """What pruning says of an operator; None for one that it does not know."""
    return LAYERS.get(call.name) or shapes.rule_for(call)


def trace(model: nn.Module, batch: Batch, ledger: Ledger | None = None, rules: Rules = rule_for) -> Trace:
    """What belongs together in a model, seen from one batch of its inputs, by the rules of pruning or by others.

    Raises: Untraceable when torch.export fails.
    """
    program = export(model, batch)
    ledger = Ledger() if ledger is None else ledger
    names = _tensor_names(model, program)
    values: dict[fx.Node, Value] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(node, names)
        elif node.op == "get_attr":
            values[node] = None
        elif node.op == "call_function":
            values[node] = _follow(node, values, ledger, rules)
        elif node.op == "output":
            for given in node.all_input_nodes:
                for labels in _labels(values[given], ledger):
                    ledger.freeze(labels, "it is an output of the model", "")
    return Trace(program, ledger, names)


def export(model: nn.Module, batch: Batch) -> ExportedProgram:
    """The model as a graph of torch operators; the model itself is left alone.

    Raises: Untraceable, with torch's own first line.
    """
    double = copied(model, share=True).eval()  # what it keeps of tensors without values goes with it
    args, kwargs = arguments(batch)
    try:
        with warnings.catch_warnings(), silent(), slow_attention(), torch.no_grad(), returned_as(double, unclassed):
            warnings.simplefilter("ignore")  # export speaks of what it does to its own copy
            return torch.export.export(double, args, kwargs, strict=False)
    except Exception as error:  # whatever a stranger's forward raises means the same: it cannot be followed
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        shown = textwrap.shorten(first, 200, placeholder=" ...")
        raise Untraceable(f"torch.export cannot follow this model: {shown}") from error


@contextmanager
def silent() -> Iterator[None]:
    """torch.export only raises: it also logs what it raises, and prints the graph as far as it came."""
    from torch.export import _trace  # brings torch._dynamo, as long to import as torch itself

    loggers = [getLogger(name) for name in ("torch.export", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(CRITICAL)
    try:
        with patch.object(_trace, "print", lambda *words, **options: None, create=True):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tensor_names(model: nn.Module, program: ExportedProgram) -> dict[str, str]:
    """Which parameter or buffer each placeholder is; a tensor with several names always goes by its first."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    by_name = first_names(tensors)
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = program.graph_signature.input_specs
    return {spec.arg.name: by_name[spec.target] for spec in specs if spec.kind in kinds and spec.target in by_name}


def _placeholder(node: fx.Node, names: Mapping[str, str]) -> Value:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if node.name in names:
        return Weight(names[node.name], tuple(value.shape), tuple(range(value.ndim)))
    return fixed(value.shape)


def _follow(node: fx.Node, values: Mapping[fx.Node, Value], ledger: Ledger, rules: Rules) -> Value:
    if node.target is operator.getitem:
        source, index = values[node.args[0]], node.args[1]  # type: ignore[index]
        return source[index] if isinstance(source, tuple) and isinstance(index, int) else None
    sizes = _shapes(node.meta.get("val"))
    if not isinstance(node.target, OpOverload):
        name = getattr(node.target, "__name__", str(node.target))
        for given in node.all_input_nodes:
            for labels in _labels(values[given], ledger):
                ledger.freeze(labels, f"{name} cannot be followed", module_path(node))
        return tuple(map(fixed, sizes)) if isinstance(node.meta.get("val"), tuple | list) else fixed(sizes[0]) if sizes else None
    bound = _bind(node, values, ledger, sizes)
    if not sizes:
        return None
    rule = rules(bound)
    if rule is None or any(shape is None for shape in sizes):
        return bound.freeze_all(f"{'.'.join(str(node.target).split('.')[:2])} cannot be followed")
    return rule(bound)


def _bind(node: fx.Node, values: Mapping[fx.Node, Value], ledger: Ledger, shapes: tuple[tuple[int, ...], ...]) -> Call:
    assert isinstance(node.target, OpOverload)
    arguments: dict[str, object] = {}
    sources: dict[str, str] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        arguments[argument.name] = substituted(given, values)
        if isinstance(given, fx.Node):
            sources[argument.name] = given.name
    return Call(node.target, arguments, shapes, node.name, module_path(node), ledger, sources)


def _shapes(value: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, Tensor):
        return (tuple(value.shape),)
    if isinstance(value, Sequence):
        return tuple(tuple(each.shape) for each in value if isinstance(each, Tensor))
    return ()


def _labels(value: Value, ledger: Ledger) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Weight):
        for dim in range(len(value.shape)):
            yield ledger.axis(value, dim)
    elif isinstance(value, tuple):
        for each in value:
            yield from _labels(each, ledger)


def module_path(node: fx.Node) -> str:
    """The path of the innermost module whose forward made a node; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""
