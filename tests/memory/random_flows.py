"""Random data flows, and an inference that really runs in an arena: the obvious check of every layout."""

from __future__ import annotations

from hypothesis import strategies as st

from enxuto.memory import Arena, Flow
from enxuto.memory.flow import Block, Buffer, Operation


@st.composite
def flows(draw: st.DrawFn, most: int = 12) -> Flow:
    """Up to `most` operations, each reading some of what is there and perhaps overwriting it; some sizes are equal."""
    sizes = st.sampled_from([1, 16, 48, 100, 256]) | st.integers(0, 400)
    inputs = [f"x{i}" for i in range(draw(st.integers(1, 2)))]
    buffers = [Buffer(name, draw(sizes)) for name in inputs]
    operations = []
    for step in range(draw(st.integers(0, most))):
        reads = tuple(draw(st.lists(st.sampled_from([b.name for b in buffers]), min_size=1, max_size=3, unique=True)))
        may = tuple(name for name in reads if draw(st.booleans()))
        size = {b.name: b.size_bytes for b in buffers}
        writes = [Buffer(f"b{step}", size[may[0]] if may else draw(sizes))]
        if draw(st.integers(0, 4)) == 0:
            writes.append(Buffer(f"s{step}", draw(sizes)))
        buffers += writes
        operations.append(Operation(f"o{step}", f"layer{step}", reads, tuple(b.name for b in writes), may))
    outputs = tuple(draw(st.lists(st.sampled_from([b.name for b in buffers]), min_size=1, max_size=2, unique=True)))
    return Flow(tuple(buffers), tuple(operations), tuple(inputs), outputs)


@st.composite
def pieces(draw: st.DrawFn, most: int = 14) -> list[Block]:
    """Up to `most` blocks with lifetimes anywhere in ten steps."""
    found = []
    for number in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, 9))
        found.append(Block((f"b{number}",), draw(st.integers(0, 300)), start, draw(st.integers(start, 9))))
    return found


def run(flow: Flow, arena: Arena) -> None:
    """Runs the flow in one array of cells: every buffer is filled with its name, and must still hold it whenever it is read."""
    sizes = {buffer.name: buffer.size_bytes for buffer in flow.buffers}
    cells: list[str] = [""] * arena.size_bytes

    def span(name: str) -> slice:
        assert arena.offsets[name] + sizes[name] <= arena.size_bytes, f"{name} leaves the arena"
        return slice(arena.offsets[name], arena.offsets[name] + sizes[name])

    def fill(name: str) -> None:
        cells[span(name)] = [name] * sizes[name]

    def holds(name: str) -> bool:
        return set(cells[span(name)]) <= {name}

    for name in flow.inputs:
        fill(name)
    for operation in flow.operations:
        assert all(map(holds, operation.reads)), f"{operation.name} reads what was overwritten"
        for name in operation.writes:
            fill(name)
        assert all(map(holds, operation.writes)), f"{operation.name} writes two results to one place"
        assert all(map(holds, set(operation.reads) - set(operation.may_overwrite))), f"{operation.name} overwrites what it reads"
    assert all(map(holds, flow.outputs)), "an output was overwritten"
