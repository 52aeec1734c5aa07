"""A better order of the operations of an inference: the one whose live buffers peak lowest, exact where the graph allows it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from enxuto.memory.flow import Flow, peak_bytes, takeovers

MAX_STATES = 20_000  # sets of done operations looked at before the search stops being exact; some seconds
BEAM = 64  # sets kept per step after that


@dataclass(frozen=True)
class _Moment:
    """What was done so far, what is live after it, and the largest sum on the way."""

    done: int  # a bit for each operation
    live_bytes: int
    peak_bytes: int


def better_order(flow: Flow, *, max_states: int = MAX_STATES) -> Flow:
    """The flow in the order of the lowest peak of live bytes; the flow itself where no order beats its own.

    Exact as long as at most `max_states` sets of done operations must be looked at, otherwise the best of a beam search and the
    given order. An operation that fits under the peak so far and leaves no more alive than before is done at once: whatever
    follows can only gain from it.
    Source: Liberis, Lane 2019, Neural networks on microcontrollers: saving memory at inference via operator reordering; Ahn et
    al. 2020, Ordering Chaos: memory-aware scheduling of irregularly wired neural networks (Serenity).
    Deviation: the sets are visited from the lowest peak up (Dijkstra on the largest sum instead of the total), so that sets at
    or above the peak of the given order are never looked at.
    """
    given = peak_bytes(flow)
    order = _exact(_Graph(flow), given, max_states) if flow.operations else None
    return flow if order is None else flow.ordered(order)


def _exact(graph: _Graph, given: int, max_states: int) -> list[int] | None:
    """The best order, or None where none beats the peak `given`."""
    start = graph.start()
    heap = [(start.peak_bytes, 0, start.done, start)]
    came: dict[int, tuple[int, int, int]] = {start.done: (start.peak_bytes, 0, -1)}  # done -> peak, done before, operation
    settled: set[int] = set()
    while heap:
        _, _, done, moment = heapq.heappop(heap)
        if done in settled:
            continue
        settled.add(done)
        if done == graph.everything:
            return _way(came, done)
        if len(settled) > max_states:
            return _beam(graph, given)
        for operation, after in graph.next(moment):
            known = came.get(after.done)
            if after.peak_bytes < given and (known is None or after.peak_bytes < known[0]):
                came[after.done] = (after.peak_bytes, done, operation)
                heapq.heappush(heap, (after.peak_bytes, -after.done.bit_count(), after.done, after))
    return None


def _way(came: dict[int, tuple[int, int, int]], done: int) -> list[int]:
    way = []
    while done:
        _, done, operation = came[done]
        way.append(operation)
    return way[::-1]


def _beam(graph: _Graph, given: int) -> list[int] | None:
    """The best order among the most promising sets of each size, or None where none beats the peak `given`."""
    beam: dict[int, tuple[_Moment, tuple[int, ...]]] = {0: (graph.start(), ())}
    for _ in range(len(graph.bits)):
        wider: dict[int, tuple[_Moment, tuple[int, ...]]] = {}
        for moment, way in beam.values():
            for operation, after in graph.next(moment):
                known = wider.get(after.done)
                if after.peak_bytes < given and (known is None or after.peak_bytes < known[0].peak_bytes):
                    wider[after.done] = (after, (*way, operation))
        best = sorted(wider.items(), key=lambda item: (item[1][0].peak_bytes, item[1][0].live_bytes, item[0]))
        beam = dict(best[:BEAM])
    return list(next(iter(beam.values()))[1]) if beam else None


class _Graph:
    """The flow as bit sets: what must be done before an operation, and what dies with it."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.bits = [1 << position for position in range(len(flow.operations))]
        self.everything = (1 << len(flow.operations)) - 1
        writer = {name: bit for bit, operation in zip(self.bits, flow.operations, strict=True) for name in operation.writes}
        self.readers = dict.fromkeys(flow.sizes, 0)
        for bit, operation in zip(self.bits, flow.operations, strict=True):
            for name in operation.reads:
                self.readers[name] |= bit
        self.before = [sum({writer.get(name, 0) for name in operation.reads}) for operation in flow.operations]
        self.kept = set(flow.outputs)
        self.mortal = [tuple(set(operation.reads) - self.kept) for operation in flow.operations]
        self.written = [sum(flow.sizes[name] for name in operation.writes) for operation in flow.operations]
        self.scratch = [
            sum(flow.sizes[name] for name in operation.writes if not self.readers[name] and name not in self.kept)
            for operation in flow.operations
        ]

        self.unread = sum(flow.sizes[name] for name in flow.inputs if not self.readers[name] and name not in self.kept)

    def start(self) -> _Moment:
        """Nothing done: the inputs are there. One that nobody reads is gone after the first operation."""
        live = sum(self.flow.sizes[name] for name in self.flow.inputs) - self.unread
        return _Moment(0, live, live + self.unread)

    def next(self, moment: _Moment) -> Iterator[tuple[int, _Moment]]:
        """The operations that can run now, each with the moment after it; only one of them where it can only gain."""
        found = []
        for position, bit in enumerate(self.bits):
            if moment.done & bit or self.before[position] & ~moment.done:
                continue
            after = self._after(moment, position)
            if after.peak_bytes == moment.peak_bytes and after.live_bytes <= moment.live_bytes:
                yield position, after
                return
            found.append((position, after))
        yield from found

    def _after(self, moment: _Moment, position: int) -> _Moment:
        operation, sizes = self.flow.operations[position], self.flow.sizes
        left = ~(moment.done | self.bits[position])
        dying = [name for name in self.mortal[position] if not self.readers[name] & left]
        overwritten = sum(sizes[old] for old in takeovers(operation, dying, sizes).values()) if dying else 0
        during = moment.live_bytes + self.written[position] - overwritten + (0 if moment.done else self.unread)
        after = moment.live_bytes + self.written[position] - self.scratch[position] - sum(sizes[name] for name in dying)
        return _Moment(moment.done | self.bits[position], after, max(moment.peak_bytes, during))
