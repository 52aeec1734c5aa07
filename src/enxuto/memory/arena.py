"""Static places for buffers: one arena, in which two blocks share bytes only if they never live at the same time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from enxuto.checks import named, whole
from enxuto.errors import RangeError
from enxuto.memory.flow import ALIGNMENT, Block, Flow, blocks
from enxuto.sizes import rounded_up

TRIES = 2000  # swaps that the local search tries when all rules leave a gap; some tenths of a second
FEW = 6  # blocks of which all orders are tried: one of them gives the smallest arena there is


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes from the start of the arena by buffer name, its size, and the size below which no arena can be.

    The lower bound is the largest sum of the aligned sizes of live blocks at any step.
    """

    offsets: Mapping[str, int]
    size_bytes: int
    lower_bound_bytes: int


def lay_out(flow: Flow, *, alignment: int = ALIGNMENT, seed: int = 0) -> Arena:
    """An arena for a flow in the order it has, with buffers overwritten in place where the flow allows it."""
    return place(blocks(flow.aligned(_checked(alignment))), alignment=alignment, seed=seed)


def place(pieces: Sequence[Block], *, alignment: int = ALIGNMENT, seed: int = 0) -> Arena:
    """The smallest arena found for blocks with lifetimes: several greedy rules, then a local search if a gap is left.

    Each rule takes the blocks in an order of its own and puts each at the lowest offset free during its whole life. The local
    search starts from the best of them and swaps blocks near the top of the arena in that order. Same seed, same arena.
    Up to six blocks get the smallest arena there is.
    Raises: RangeError when the alignment is no power of two.
    Source: Pisarchyk, Lee 2020, Efficient memory management for deep neural net inference, greedy by size and greedy by breadth
    for offset calculation. Deviation: the lowest free offset instead of the tightest gap; the search after it.
    """
    _checked(alignment)
    pieces = [replace(piece, size_bytes=rounded_up(piece.size_bytes, alignment)) for piece in pieces]
    bound = lower_bound(pieces)
    puzzle = _Puzzle(pieces)
    best = min(map(puzzle.first_fit, _orders(pieces)), key=puzzle.height)
    if puzzle.height(best) > bound and len(pieces) <= FEW:
        best = min(map(puzzle.first_fit, permutations(range(len(pieces)))), key=puzzle.height)
    elif puzzle.height(best) > bound:
        best = _search(puzzle, best, bound, seed)
    puzzle.check(best)
    places = {name: offset for piece, offset in zip(pieces, best, strict=True) for name in piece.buffers}
    return Arena(places, puzzle.height(best), bound)


def lower_bound(pieces: Sequence[Block]) -> int:
    """The largest sum of bytes of the blocks alive at one step."""
    return max((sum(p.size_bytes for p in pieces if p.start <= step <= p.end) for step in {p.start for p in pieces}), default=0)


def _orders(pieces: Sequence[Block]) -> list[list[int]]:
    """By size, by breadth, by size and length of life, by length of life, by start; ties by start and position."""
    every = range(len(pieces))
    load = {step: sum(p.size_bytes for p in pieces if p.start <= step <= p.end) for step in {p.start for p in pieces}}
    breadth = [max(load[step] for step in load if p.start <= step <= p.end) for p in pieces]
    size = [p.size_bytes for p in pieces]
    life = [p.end - p.start + 1 for p in pieces]
    keys: tuple[Callable[[int], tuple[int, int]], ...] = (
        lambda i: (-size[i], -life[i]),
        lambda i: (-breadth[i], -size[i]),
        lambda i: (-size[i] * life[i], -size[i]),
        lambda i: (-life[i], -size[i]),
        lambda i: (0, 0),
    )
    return [sorted(every, key=lambda i: (*key(i), pieces[i].start, i)) for key in keys]


def _search(puzzle: _Puzzle, offsets: list[int], bound: int, seed: int) -> list[int]:
    """Swaps two blocks near the top of the arena in the order of placing, while that makes it no larger; the smallest seen."""
    dice = random.Random(seed)
    order = sorted(range(len(offsets)), key=lambda i: offsets[i])
    height = puzzle.height(offsets)
    for _ in range(TRIES):
        top = dice.choice([i for i in order if offsets[i] + puzzle.sizes[i] == height])
        near = [top, *puzzle.neighbours[top]]
        near += puzzle.neighbours[dice.choice(near)]
        swapped = _swapped(order, dice.choice(near), dice.choice(near))
        candidate = puzzle.first_fit(swapped)
        if puzzle.height(candidate) <= height:
            order, offsets, height = swapped, candidate, puzzle.height(candidate)
        if height == bound:
            break
    return offsets


def _swapped(order: list[int], one: int, other: int) -> list[int]:
    return [other if i == one else one if i == other else i for i in order]


class _Puzzle:
    """Sizes, and who lives at the same time as whom."""

    def __init__(self, pieces: Sequence[Block]) -> None:
        self.sizes = [piece.size_bytes for piece in pieces]
        self.neighbours = [
            [j for j, other in enumerate(pieces) if j != i and piece.meets(other)] for i, piece in enumerate(pieces)
        ]

    def first_fit(self, order: Sequence[int]) -> list[int]:
        """Each block, in this order, at the lowest offset that no neighbour with a place takes."""
        offsets = [-1] * len(self.sizes)
        for i in order:
            offset = 0
            for low, high in sorted((offsets[j], offsets[j] + self.sizes[j]) for j in self.neighbours[i] if offsets[j] >= 0):
                if low >= offset + self.sizes[i]:
                    break
                offset = max(offset, high)
            offsets[i] = offset
        return offsets

    def height(self, offsets: Sequence[int]) -> int:
        """Bytes from the start of the arena to the end of its last block."""
        return max((offset + size for offset, size in zip(offsets, self.sizes, strict=True)), default=0)

    def check(self, offsets: Sequence[int]) -> None:
        """Two blocks alive at the same time share no byte; anything else is our own mistake."""
        for i, others in enumerate(self.neighbours):
            for j in others:
                apart = offsets[i] + self.sizes[i] <= offsets[j] or offsets[j] + self.sizes[j] <= offsets[i]
                assert apart, f"blocks {i} and {j} overlap"


def _checked(alignment: int) -> int:
    if not whole(alignment, 1) or alignment & (alignment - 1):
        raise RangeError(
            f"{named('alignment', alignment)} is no power of two; arenas are aligned to 1, 4, 8, 16, 32 or 64 bytes."
        )
    return alignment
