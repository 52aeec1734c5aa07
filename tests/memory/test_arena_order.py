"""Laws of the order: valid, never worse, and the best there is where the search is exact."""

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from random_flows import flows, run

from enxuto.errors import TaskError
from enxuto.memory import Flow, better_order, lay_out
from enxuto.memory.flow import Buffer, Operation, peak_bytes


def every_order(flow: Flow):
    for order in permutations(range(len(flow.operations))):
        try:
            yield flow.ordered(order)
        except TaskError:  # reads before it is written
            continue


@given(flows(most=6))
@settings(max_examples=80, deadline=None)
def test_no_order_of_a_small_graph_is_better(flow):
    assert peak_bytes(better_order(flow)) == min(map(peak_bytes, every_order(flow)))


@given(flows(most=16))
@settings(max_examples=80, deadline=None)
def test_the_better_order_holds_the_same_operations_and_is_never_worse(flow):
    found = better_order(flow)  # a Flow refuses an order in which something is read too early
    assert Counter(found.operations) == Counter(flow.operations)
    assert peak_bytes(found) <= peak_bytes(flow)
    run(found, lay_out(found))


@given(flows(most=16))
@settings(max_examples=80, deadline=None)
def test_the_beam_is_never_worse_than_the_given_order_nor_better_than_the_best(flow):
    found = better_order(flow, max_states=1)
    assert Counter(found.operations) == Counter(flow.operations)
    assert peak_bytes(better_order(flow)) <= peak_bytes(found) <= peak_bytes(flow)


def test_two_branches_run_one_after_the_other():
    """Widening both branches first holds 100 + 100; finishing one first holds 10 + 100."""
    sizes = {"x": 10, "wide1": 100, "wide2": 100, "thin1": 10, "thin2": 10, "y": 10}
    steps = [("x", "wide1"), ("x", "wide2"), ("wide1", "thin1"), ("wide2", "thin2")]
    operations = [Operation(f"to {write}", write, (read,), (write,)) for read, write in steps]
    operations.append(Operation("add", "add", ("thin1", "thin2"), ("y",)))
    flow = Flow(tuple(Buffer(*item) for item in sizes.items()), tuple(operations), ("x",), ("y",))
    assert peak_bytes(flow) == 100 + 100 + 10
    assert peak_bytes(better_order(flow)) == 10 + 100 + 10
    assert better_order(better_order(flow)) == better_order(flow)


def test_a_chain_has_one_order():
    names = [f"b{i}" for i in range(200)]
    operations = tuple(Operation(f"o{i}", "", (names[i],), (names[i + 1],)) for i in range(199))
    flow = Flow(tuple(Buffer(name, 16) for name in names), operations, (names[0],), (names[-1],))
    assert better_order(flow) is flow


@pytest.mark.parametrize(
    ("buffers", "operations", "outputs", "words"),
    [
        (["x"], [Operation("o", "", ("x", "z"), ())], ["x"], "reads 'z' before it is written"),
        (["x", "y"], [Operation("o", "", ("x",), ("y",)), Operation("p", "", ("x",), ("y",))], ["y"], "is there already"),
        (["x", "y"], [Operation("o", "", ("x",), ("y",), ("y",))], ["y"], "may overwrite what it does not read"),
        (["x", "y"], [], ["x"], "'y' has no size, no writer or two sizes"),
        (["x", "x"], [], ["x"], "'x' has no size, no writer or two sizes"),
        (["x"], [], ["z"], "'z' has no size, no writer or two sizes"),
    ],
)
def test_a_flow_that_makes_no_sense_is_refused(buffers, operations, outputs, words):
    with pytest.raises(TaskError, match=words):
        Flow(tuple(Buffer(name, 1) for name in buffers), tuple(operations), ("x",), tuple(outputs))
