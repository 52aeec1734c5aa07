"""The proof: real networks run inside one array of the size we say, every activation at its offset, and give the same outputs."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from torch import Tensor, fx, nn

import channel_nets
from channel_nets import Dense, Depthwise, Gates, Residual, Shuffled
from enxuto import zoo
from enxuto.memory import Flow, better_order, lay_out
from enxuto.memory.flow import peak_bytes
from enxuto.memory.read import exported, flow_of


class Branches(nn.Module):
    """Three branches that are all widened before the first is narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.ModuleList(nn.Conv2d(3, 32, 3, padding=1) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Conv2d(32, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        wide = [torch.relu(layer(x)) for layer in self.widen]
        thin = [layer(y) for layer, y in zip(self.narrow, wide, strict=True)]
        return torch.cat(thin, 1)


class Runner:
    """Runs the operations of a flow, reading and writing nothing but one array of floats, the weights and constants."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.program = exported(model, x)
        self.nodes = {node.name: node for node in self.program.graph.nodes}
        signature = self.program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.weights = {name: self.program.state_dict[target] for name, target in names.items()}

    def run(self, x: Tensor, flow: Flow) -> tuple[Tensor, int]:
        """The output, and how many bytes the array had."""
        arena = lay_out(flow)
        self.memory = torch.full((arena.size_bytes // 4,), math.nan)
        self.places = {b.name: (arena.offsets[b.name] // 4, b.shape) for b in flow.buffers if b.shape}
        self.stored(flow.inputs[0]).copy_(x)
        for operation in flow.operations:
            results = self.compute(self.nodes[operation.name])
            whole = isinstance(results, Tensor)
            for index, result in enumerate([results] if whole else results):
                name = operation.name if whole else f"{operation.name}.{index}"
                if name in self.places:
                    self.stored(name).copy_(result.clone())
        (output,) = self.nodes["output"].all_input_nodes
        return self.value(output), arena.size_bytes

    def stored(self, name: str) -> Tensor:
        offset, shape = self.places[name]
        return self.memory[offset : offset + math.prod(shape)].view(shape)

    def value(self, node: object) -> object:
        if isinstance(node, list | tuple):
            return type(node)(map(self.value, node))
        if not isinstance(node, fx.Node):
            return node
        if node.name in self.weights:
            return self.weights[node.name]
        if node.name in self.places:
            return self.stored(node.name)
        if node.target is operator.getitem and f"{node.args[0].name}.{node.args[1]}" in self.places:
            return self.stored(f"{node.args[0].name}.{node.args[1]}")
        return self.compute(node)  # a view, a folded norm, a constant

    def compute(self, node: fx.Node) -> object:
        return node.target(*map(self.value, node.args), **node.kwargs)


NETWORKS = {
    **{name: (lambda name=name: zoo.build(name), (1, 1, 28, 28)) for name in zoo.NAMES},
    **{kind.__name__: (kind, (1, 3, 8, 8)) for kind in (Branches, Dense, Depthwise, Residual, Shuffled, Gates)},
    "Permuted": (channel_nets.Permuted, (1, 3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs_in_its_arena_and_gives_the_same_outputs(name):
    build, shape = NETWORKS[name]
    model, x = build().eval(), torch.randn(shape)
    runner = Runner(model, x)
    given = flow_of(runner.program)
    with torch.no_grad():
        expected = model(x)
        for flow in (given, better_order(given)):
            output, size = runner.run(x, flow)
            torch.testing.assert_close(output, expected)
            assert size <= 1.1 * peak_bytes(flow.aligned())


def test_a_network_of_branches_runs_in_another_order():
    model, x = Branches().eval(), torch.randn(1, 3, 8, 8)
    runner = Runner(model, x)
    given = flow_of(runner.program)
    better = better_order(given)
    with torch.no_grad():
        (one, large), (other, small) = runner.run(x, given), runner.run(x, better)
    assert torch.equal(one, other)
    assert small < large / 2


def test_the_proof_fails_when_the_arena_is_wrong(monkeypatch):
    model, x = zoo.build("resnet-8").eval(), torch.randn(1, 1, 28, 28)
    runner = Runner(model, x)
    flow = flow_of(runner.program)
    arena = lay_out(flow)
    crowded = type(arena)(dict.fromkeys(arena.offsets, 0), arena.size_bytes, 0)
    monkeypatch.setattr(f"{__name__}.lay_out", lambda _: crowded)
    with torch.no_grad():
        output, _ = runner.run(x, flow)
        assert not torch.allclose(output, model(x))
