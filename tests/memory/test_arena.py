"""Laws of the arena: nobody overwrites what is still needed, and the size is near what must be."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flows import flows, pieces, run

from enxuto.errors import RangeError
from enxuto.memory import Arena, Flow, arena, lay_out
from enxuto.memory.arena import place
from enxuto.memory.flow import Block, Buffer, Operation, blocks, peak_bytes


@given(flows(), st.sampled_from([1, 4, 16, 64]))
@settings(max_examples=150, deadline=None)
def test_an_inference_in_the_arena_reads_what_was_written(flow, alignment):
    found = lay_out(flow, alignment=alignment)
    run(flow, found)
    assert all(offset % alignment == 0 for offset in found.offsets.values())
    assert set(found.offsets) == {buffer.name for buffer in flow.buffers}


def test_the_inference_of_the_tests_notices_a_wrong_arena():
    flow = Flow((Buffer("x", 8), Buffer("y", 8)), (Operation("o", "o", ("x",), ("y",)),), ("x",), ("y",))
    run(flow, Arena({"x": 0, "y": 8}, 16, 16))
    with pytest.raises(AssertionError, match="overwrites what it reads"):
        run(flow, Arena({"x": 0, "y": 4}, 16, 16))


@given(pieces())
@settings(max_examples=150, deadline=None)
def test_blocks_that_live_together_share_no_byte_and_the_bound_holds(found):
    result = place(found)
    spans = [(b, result.offsets[b.buffers[0]], result.offsets[b.buffers[0]] + b.size_bytes) for b in found]
    for i, (one, low, high) in enumerate(spans):
        for other, bottom, top in spans[:i]:
            together = max(one.start, other.start) <= min(one.end, other.end)
            assert not together or high <= bottom or top <= low
    assert result.size_bytes >= result.lower_bound_bytes
    assert result.size_bytes == max((-(-high // 16) * 16 for _, _, high in spans), default=0)


@given(pieces())
@settings(max_examples=100, deadline=None)
def test_the_bound_is_the_largest_sum_at_one_moment(found):
    sums = [sum(-(-b.size_bytes // 16) * 16 for b in found if b.start <= step <= b.end) for step in range(10)]
    assert place(found).lower_bound_bytes == max(sums)


def smallest(found: list[Block]) -> int:
    """The obvious way: every order, each block as low as it can be, moved up a byte at a time."""
    best = None
    for order in permutations(found):
        placed: list[tuple[Block, int]] = []
        for block in order:
            offset = 0
            while any(block.meets(b) and offset < o + b.size_bytes and o < offset + block.size_bytes for b, o in placed):
                offset += 1
            placed.append((block, offset))
        height = max((o + b.size_bytes for b, o in placed), default=0)
        best = height if best is None else min(best, height)
    return best or 0


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 3)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_few_blocks_get_the_smallest_arena_there_is(drawn):
    found = [Block((f"b{i}",), size, start, start + life) for i, (size, start, life) in enumerate(drawn)]
    assert place(found, alignment=1).size_bytes == smallest(found)


@given(pieces())
@settings(max_examples=50, deadline=None)
def test_the_same_seed_gives_the_same_arena(found):
    assert place(found, seed=3) == place(found, seed=3)


def test_the_search_closes_a_gap_that_the_rules_leave(monkeypatch):
    """Found among random blocks: all rules need more than the bound, a few swaps do not."""
    drawn = [(2, 3, 8), (5, 0, 5), (4, 0, 2), (8, 2, 2), (6, 7, 8), (1, 2, 3), (6, 5, 8), (5, 4, 8)]
    found = [Block((f"b{i}",), 16 * size, start, end) for i, (size, start, end) in enumerate(drawn)]
    assert place(found).size_bytes == place(found).lower_bound_bytes
    monkeypatch.setattr(arena, "TRIES", 0)
    assert place(found).size_bytes > place(found).lower_bound_bytes


@given(flows())
@settings(max_examples=100, deadline=None)
def test_what_is_overwritten_in_place_had_the_same_size_and_dies_there(flow):
    sizes = {b.name: b.size_bytes for b in flow.buffers}
    step_of = {name: step for step, operation in enumerate(flow.operations) for name in operation.writes}
    for block in blocks(flow):
        for old, new in zip(block.buffers, block.buffers[1:], strict=False):
            step = step_of[new]
            assert sizes[old] == sizes[new] == block.size_bytes
            assert old in flow.operations[step].may_overwrite
            assert old not in flow.outputs
            assert not any(old in operation.reads for operation in flow.operations[step + 1 :])


@given(flows())
@settings(max_examples=100, deadline=None)
def test_the_peak_is_what_a_count_at_every_step_gives(flow):
    """By the definition: what is there before, and what is written, less what is overwritten."""
    sizes = {b.name: b.size_bytes for b in flow.buffers}
    alive, peak = set(flow.inputs), sum(sizes[name] for name in flow.inputs)
    for step, operation in enumerate(flow.operations):
        later = {name for other in flow.operations[step + 1 :] for name in other.reads} | set(flow.outputs)
        free = [name for name in operation.may_overwrite if name not in later]
        reused = 0
        for name in operation.writes:
            match = next((old for old in free if sizes[old] == sizes[name]), None)
            if match is not None:
                free.remove(match)
                reused += sizes[name]
        peak = max(peak, sum(sizes[name] for name in alive | set(operation.writes)) - reused)
        alive = (alive | set(operation.writes)) & later
    assert peak_bytes(flow) == peak


@pytest.mark.parametrize("alignment", [0, 3, -16, 1.0, "16", True])
def test_an_alignment_that_is_none_is_refused(alignment):
    with pytest.raises(RangeError, match="power of two"):
        place([], alignment=alignment)


def test_no_blocks_need_no_memory():
    assert place([]) == Arena({}, 0, 0)
