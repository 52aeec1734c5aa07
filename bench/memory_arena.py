"""How near static arenas come to the lower bound: every network of the zoo in fp32 and int8, and random data flows.

Beside ours, in the same table: no sharing at all, and two simple rules that share memory in place as ours do, first fit in the
order of time and first fit by size. The bound is the largest sum of live bytes, aligned to 16, in the same order of operations.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import mean
from typing import Any, get_args

import torch

import common
from enxuto import zoo
from enxuto.memory import Flow, better_order, devices, fits, lay_out, read_flow
from enxuto.memory.flow import Block, Buffer, Operation, blocks, peak_bytes
from enxuto.memory.read import Bits

IMAGES = torch.zeros(1, 1, 28, 28)
GRAPHS = 3000
MOST_OPERATIONS = 40
NEAR = 1.1
Row = dict[str, Any]


def main() -> None:
    """One table of networks, one of random flows, one of devices."""
    torch.set_num_threads(1)
    claim = "static arenas: no overlap of live buffers, within 10 % of the lower bound"
    common.tell("memory_arena", claim, [row for name in zoo.NAMES for bits in get_args(Bits) for row in network(name, bits)])
    common.tell("memory_arena_random", f"{claim}, {GRAPHS} random data flows", randoms())
    common.tell("memory_arena_devices", "which networks fit which device, 28 x 28 images", fitting())


def network(name: str, bits: Bits) -> list[Row]:
    """The arena of one network in its own order and in a better one, bytes."""
    given = read_flow(zoo.build(name).eval(), IMAGES, bits=bits).aligned()
    return [
        {"network": name, "bits": bits, "order": order, **sizes(flow)}
        for order, flow in (("given", given), ("better", better_order(given)))
    ]


def sizes(flow: Flow) -> Row:
    """Bytes of the arena under each rule."""
    start = time.process_time()
    ours = lay_out(flow)
    seconds = time.process_time() - start
    return {
        "no sharing": sum(flow.sizes.values()),
        "by time": first_fit(blocks(flow), lambda block: (block.start, -block.size_bytes)),
        "by size": first_fit(blocks(flow), lambda block: (-block.size_bytes, block.start)),
        "ours": ours.size_bytes,
        "bound": ours.lower_bound_bytes,
        "ours / bound": ours.size_bytes / ours.lower_bound_bytes,
        "_seconds": seconds,
    }


def first_fit(pieces: list[Block], key: Callable[[Block], tuple[int, int]]) -> int:
    """The obvious rule: in the order of the key, each block at the lowest offset where it meets nobody."""
    placed: list[tuple[Block, int]] = []
    for block in sorted(pieces, key=key):
        others = [(offset, offset + other.size_bytes) for other, offset in placed if other.meets(block)]
        candidates = sorted({0, *(high for _, high in others)})
        offset = next(c for c in candidates if all(high <= c or c + block.size_bytes <= low for low, high in others))
        placed.append((block, offset))
    return max(offset + block.size_bytes for block, offset in placed)


def random_flow(dice: random.Random) -> Flow:
    """A chain with short cuts, several wide branches, or reads from anywhere; a third of the operations may work in place."""
    reach = dice.choice([3, 8, MOST_OPERATIONS])
    buffers = [Buffer("x", dice.randrange(1, 4000))]
    operations: list[Operation] = []
    for number in range(dice.randrange(5, MOST_OPERATIONS)):
        reads = tuple(dict.fromkeys(dice.choice(buffers[-reach:]) for _ in range(dice.choice([1, 1, 2, 3]))))
        in_place = dice.random() < 1 / 3
        size = reads[0].size_bytes if in_place else dice.choice([dice.randrange(1, 4000), 2 ** dice.randrange(4, 12)])
        names = tuple(buffer.name for buffer in reads)
        buffers.append(Buffer(f"b{number}", size))
        operations.append(Operation(f"o{number}", "", names, (f"b{number}",), names if in_place else ()))
    read = {name for operation in operations for name in operation.reads}
    outputs = tuple(buffer.name for buffer in buffers if buffer.name not in read)
    return Flow(tuple(buffers), tuple(operations), ("x",), outputs)


def randoms() -> list[Row]:
    """Each rule over all random flows, in the given and in the better order."""
    dice = random.Random(common.SEED)
    measured: dict[str, list[Row]] = {"given": [], "better": []}
    gains, seconds = [], []
    for _ in range(GRAPHS):
        given = random_flow(dice).aligned()
        start = time.process_time()
        better = better_order(given)
        seconds.append(time.process_time() - start)
        gains.append(peak_bytes(better) / peak_bytes(given))
        measured["given"].append(sizes(given))
        measured["better"].append(sizes(better))
    rows = []
    for order, found in measured.items():
        for rule in ("no sharing", "by time", "by size", "ours"):
            ratios = sorted(row[rule] / row["bound"] for row in found)
            row = {"order": order, "rule": rule, "mean of bound": mean(ratios), "worst": ratios[-1]}
            row |= {"at the bound": sum(r == 1 for r in ratios) / GRAPHS, "within 10 %": sum(r <= NEAR for r in ratios) / GRAPHS}
            row |= {
                "peak of given": mean(gains) if order == "better" else 1.0,
                "_percentiles": [ratios[-1 - (GRAPHS - 1) * (100 - p) // 100] for p in range(101)],
            }
            if rule == "ours":
                row |= {
                    "place s": mean(each["_seconds"] for each in found),
                    "order s": mean(seconds) if order == "better" else None,
                }
            rows.append(row)
    return rows


def fitting() -> list[Row]:
    """What each network needs without any reserve, and the devices it fits with theirs."""
    rows = []
    for name in zoo.NAMES:
        model = zoo.build(name).eval()
        for bits in get_args(Bits):
            answers = {device: fits(model, IMAGES, device, bits=bits) for device in devices()}
            layout = next(iter(answers.values())).layout
            row: Row = {"network": name, "bits": bits, "arena": layout.arena.size_bytes, "weights": layout.weights_bytes}
            row |= {"peak at": layout.peak_path, "does not fit": ", ".join(d for d, fit in answers.items() if not fit.fits)}
            rows.append(row | {"_verdicts": {device: fit.verdict for device, fit in answers.items()}})
    return rows


if __name__ == "__main__":
    main()
