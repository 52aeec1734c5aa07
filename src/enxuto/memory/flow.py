"""What an inference does with memory: operations in an order, the buffers they read and write, and how long each is needed.

Free of torch: `read.py` makes a flow of a model, `order.py` reorders it, `arena.py` gives the buffers their places.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from enxuto.errors import TaskError
from enxuto.sizes import rounded_up

ALIGNMENT = 16  # bytes; what the widest vector loads of Cortex-M55 and Cortex-A want, and what TensorFlow Lite Micro uses


@dataclass(frozen=True)
class Buffer:
    """A tensor that takes room while it is needed. `shape` is for people, and empty for the scratch of a kernel."""

    name: str
    size_bytes: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operation:
    """One step of the inference: every read buffer is there before it, every written one after it.

    A written buffer may take the place of a buffer of the same size in `may_overwrite` if nobody needs that one afterwards.
    What is written, never read and no output is scratch: it is there during the operation only.
    """

    name: str
    path: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    may_overwrite: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flow:
    """Buffers and operations, in the order in which these run. Inputs are there from the start, outputs until the end.

    Raises: TaskError when a buffer is written twice or never, or read before it is written.
    """

    buffers: tuple[Buffer, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {buffer.name for buffer in self.buffers}
        there = set(self.inputs)
        for operation in self.operations:
            for name in operation.reads:
                if name not in there:
                    raise TaskError(
                        f"'{operation.name}' reads '{name}' before it is written; put the operation after its writer."
                    )
            for name in operation.writes:
                if name in there:
                    raise TaskError(f"'{operation.name}' writes '{name}', which is there already; give each result its own name.")
            if not set(operation.may_overwrite) <= set(operation.reads):
                raise TaskError(f"'{operation.name}' may overwrite what it does not read; name only buffers that it reads.")
            there.update(operation.writes)
        if there != known or len(known) != len(self.buffers) or not set(self.outputs) <= there:
            odd = sorted(there ^ known | set(self.outputs) - there) or sorted(b.name for b in self.buffers)
            raise TaskError(
                f"buffer '{odd[0]}' has no size, no writer or two sizes; list each once and let one operation write it."
            )

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each buffer by its name."""
        return {buffer.name: buffer.size_bytes for buffer in self.buffers}

    @cached_property
    def last_reads(self) -> Mapping[str, int]:
        """The step after which a buffer is not needed: its last reader, or its writer if nobody reads it; outputs: the last."""
        last = dict.fromkeys(self.inputs, 0)
        for step, operation in enumerate(self.operations):
            last.update(dict.fromkeys((*operation.reads, *operation.writes), step))
        return last | dict.fromkeys(self.outputs, max(len(self.operations) - 1, 0))

    def aligned(self, alignment: int = ALIGNMENT) -> Flow:
        """The same flow with every size rounded up to a multiple of `alignment` bytes."""
        rounded = (replace(buffer, size_bytes=rounded_up(buffer.size_bytes, alignment)) for buffer in self.buffers)
        return replace(self, buffers=tuple(rounded))

    def ordered(self, order: Sequence[int]) -> Flow:
        """The same flow with its operations in another order, given by their positions in this one."""
        return replace(self, operations=tuple(self.operations[position] for position in order))


@dataclass(frozen=True)
class Block:
    """A piece of memory and its lifetime in steps, both ends included. `buffers` take turns in it, each in place of the last."""

    buffers: tuple[str, ...]
    size_bytes: int
    start: int
    end: int

    def meets(self, other: Block) -> bool:
        """True if there is a step at which both are alive."""
        return self.start <= other.end and other.start <= self.end


def blocks(flow: Flow) -> list[Block]:
    """The pieces of memory that a flow needs in its order, after buffers were overwritten in place where that is allowed."""
    last, chains = flow.last_reads, {name: [name] for name in flow.inputs}
    starts = dict.fromkeys(flow.inputs, 0)
    outputs = set(flow.outputs)
    for step, operation in enumerate(flow.operations):
        dying = {name for name in operation.may_overwrite if last[name] == step and name not in outputs}
        taken = takeovers(operation, dying, flow.sizes)
        for name in operation.writes:
            old = taken.get(name)
            chains[name] = [*chains.pop(old), name] if old else [name]
            starts[name] = starts[old] if old else step
    return [Block(tuple(chain), flow.sizes[name], starts[name], last[name]) for name, chain in chains.items()]


def takeovers(operation: Operation, dying: Collection[str], sizes: Mapping[str, int]) -> dict[str, str]:
    """Which written buffer takes the place of which overwritten one: one of the same size that nobody needs any more."""
    free = [name for name in dict.fromkeys(operation.may_overwrite) if name in dying]
    taken: dict[str, str] = {}
    for name in operation.writes:
        old = next((old for old in free if sizes[old] == sizes[name]), None)
        if old is not None:
            free.remove(old)
            taken[name] = old
    return taken


def live_bytes(flow: Flow) -> list[int]:
    """Bytes of the live buffers at each step of a flow, in its order; of a flow without operations, those of its inputs."""
    changes = [0] * (max(len(flow.operations), 1) + 1)
    for block in blocks(flow):
        changes[block.start] += block.size_bytes
        changes[block.end + 1] -= block.size_bytes
    found, live = [], 0
    for change in changes[:-1]:
        live += change
        found.append(live)
    return found


def peak_bytes(flow: Flow) -> int:
    """The largest sum of live bytes at any step: no arena for this order can be smaller.

    >>> first = Operation("fc1", "fc1", reads=("x",), writes=("h",))
    >>> second = Operation("fc2", "fc2", reads=("h",), writes=("y",))
    >>> sizes = (Buffer("x", 784), Buffer("h", 300), Buffer("y", 10))
    >>> peak_bytes(Flow(sizes, (first, second), inputs=("x",), outputs=("y",)))
    1084
    """
    return max(live_bytes(flow))
