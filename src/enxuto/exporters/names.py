"""What the outputs of an .onnx graph are called: as the model calls them, where it returns a dict or a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import helper


def name_outputs_(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Gives the outputs these names, in their order; an empty one stays what the exporter made of it.

    A value inside that has such a name gets another; beside an input or a weight of that name the output does.
    """
    fixed = {item.name for item in [*graph.input, *graph.initializer]}
    inside = set(_made(graph))
    wanted: dict[str, str] = {}
    for item, name in zip(graph.output, names, strict=True):
        if not name:
            continue
        name = _free(name, fixed) if name in fixed else name
        if item.name in fixed | wanted.keys():
            graph.node.append(helper.make_node("Identity", [item.name], [name], name=f"{name}/Identity"))
            wanted[name] = name
        else:
            wanted[item.name] = name
        item.name = name
    others = {name: _free(name, fixed | inside | {*wanted.values()}) for name in {*wanted.values()} & inside - wanted.keys()}
    _rename_(graph, others | wanted)


def _free(name: str, taken: set[str]) -> str:
    return next(found for number in range(1, len(taken) + 2) if (found := f"{name}.{number}") not in taken)


def _made(graph: onnx.GraphProto) -> Iterator[str]:
    """The values that nodes give, also in the branches of a node."""
    for node in graph.node:
        yield from node.output
        for inner in _branches(node):
            yield from _made(inner)


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for item in node.attribute:
        yield from [item.g] if item.HasField("g") else item.graphs


def _rename_(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        for inner in _branches(node):
            _rename_(inner, names)
            for item in inner.output:
                item.name = names.get(item.name, item.name)
    for item in graph.value_info:
        item.name = names.get(item.name, item.name)
