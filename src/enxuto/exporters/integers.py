"""Which nodes of a graph run on integers, and which outputs stay float: a grid is put where an integer kernel gains by it.

A product (Gemm, MatMul) can give floats at no cost, so its output is rounded only where integers read it; a convolution has no
such kernel. Sums, pools and the like run on integers between integers alone: a residual stream that only norms and other sums
read keeps its precision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

PRODUCTS = ("Conv", "Gemm", "MatMul")
GIVES_FLOATS = ("Gemm", "MatMul")  # their kernels on integers also come with a float output
JOINS = ("Add", "Sub", "Mul", "Concat")  # of several tensors; all others work on their first input
FUSED = ("Relu", "Clip")  # with the product before them: no operator of their own


@dataclass(frozen=True)
class Placed:
    """Names of the nodes that stay float, of those that could be integer, and of tensors that no grid rounds."""

    float_nodes: tuple[str, ...]
    float_tensors: frozenset[str]


def placed(graph: onnx.GraphProto, operators: Collection[str], excluded: Collection[str]) -> Placed:
    """Where integers are worth it, among nodes of the given operators that are not excluded already."""
    able = {node.name: node for node in graph.node if node.op_type in operators}
    chosen = {name: node for name, node in able.items() if name not in excluded}
    around = _Around(graph)
    while left := [name for name, node in chosen.items() if not _pays(node, around, chosen)]:
        for name in left:
            del chosen[name]
    ends = {
        output
        for node in chosen.values()
        if node.op_type in GIVES_FLOATS
        for output in node.output
        if not around.read_by(output, chosen)
    }
    return Placed(tuple(sorted(able.keys() - chosen.keys())), frozenset(ends))


class _Around:
    """Who writes and who reads the tensors of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[str]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node.name)

    def sources(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that compute what it works on, which are not those of a new shape; constants and inputs have none."""
        given = node.input if node.op_type in JOINS else node.input[:1]
        return [self.made[name] for name in given if name in self.made]

    def read_by(self, name: str, chosen: Collection[str]) -> bool:
        """True where one of these nodes reads the tensor."""
        return any(reader in chosen for reader in self.readers.get(name, ()))


def _pays(node: onnx.NodeProto, around: _Around, chosen: Collection[str]) -> bool:
    """True for products, and for what lies between nodes on integers; what a convolution takes along costs nothing."""
    if node.op_type in PRODUCTS:
        return True
    sources = around.sources(node)
    whole = bool(sources) and all(source.name in chosen for source in sources)
    if node.op_type in FUSED and whole and sources[0].op_type not in GIVES_FLOATS:
        return True
    return whole and any(around.read_by(name, chosen) for name in node.output)
