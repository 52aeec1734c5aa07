"""Damages a million small .nxt files, each in another way that its number decides, and reads them.

Half of them have every checksum mended, so that the decoders behind are reached. A file is refused with ArtifactError or read;
where nobody mended it, what is read must be what was written. One of the two processes runs the loops of numba with every index
checked.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

PROCESSES = 2
PATIENCE_S = 60  # for one file, on a shared machine
MEMORY = 2 << 30  # of address space beyond what a process has before its first file
BATCH = 6  # tensors in a file
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
KINDS = ("flip", "byte", "splice", "cut", "repeat", "stream", "index")


class Wrong(Exception):
    """Something was read that should not have been."""


def damaged(data: bytes, kind: str, chance: random.Random) -> bytes:
    """The bytes after one to four changes of this kind."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, length = chance.randrange(len(out) or 1), chance.choice((1, 2, 4, 9, 40))
        if kind == "flip" and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == "byte" and out:
            out[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif kind == "splice":
            start = chance.randrange(len(data))
            out[at : at + length * chance.randrange(2)] = data[start : start + length]
        elif kind == "cut":
            del out[at : at + length if chance.random() < 0.7 else len(out)]
        elif kind == "repeat":
            out[at:at] = out[at : at + length]
    return bytes(out)


def files(folder: Path) -> list[tuple[bytes, bytes, list[bytes], tuple[dict[str, Any], list[Any]]]]:
    """Small files that hold every method and dtype between them: bytes, text of the index, streams and what was written."""
    from enxuto.artifact.container import read, write
    from forge import everything, taken_apart

    meta, sections = everything()
    found = []
    for start, bare in itertools.product(range(0, len(sections), BATCH), (False, True)):
        path = folder / "whole.nxt"
        write(path, meta if start == 0 else {}, sections[start : start + BATCH], plain=bare)
        found.append((path.read_bytes(), *taken_apart(path), read(path)))
    return found


def made(base: tuple[bytes, bytes, list[bytes], Any], kind: str, mend: bool, chance: random.Random) -> bytes:
    """A damaged file; in "stream" one stream or two of a whole file are, in "index" its text before it is coded."""
    from enxuto.coding.bits import write_varint
    from forge import forged, mended

    data, text, streams, _ = base
    if kind == "index":
        lengths = [len(stream) for stream in streams]
        return forged(damaged(text, chance.choice(KINDS[:5]), chance), b"".join(streams), lengths, coded=chance.random() < 0.3)
    if kind == "stream":
        behind = b"".join(write_varint(len(stream)) for stream in streams)
        streams = list(streams)
        for _ in range(chance.choice((1, 1, 2))):
            number = chance.randrange(len(streams))
            if chance.random() < 0.1:
                streams[number] = bytes([chance.randrange(11)]) + streams[number][1:]
            streams[number] = damaged(streams[number], chance.choice(KINDS[:5]), chance) or b"\0"
        lengths = [len(stream) for stream in streams]
        whole = text.removesuffix(behind) + b"".join(map(write_varint, lengths))
        return forged(whole, b"".join(streams), lengths, coded=chance.random() < 0.1)
    broken = damaged(data, kind, chance)
    return mended(broken) if mend and len(broken) > 13 else broken


def attempt(path: Path, base: tuple[bytes, bytes, list[bytes], Any], seed: int, case: int) -> tuple[str, str]:
    """The kind of damage and what became of the file."""
    from enxuto.artifact.container import read
    from enxuto.errors import ArtifactError
    from forge import same

    chance = random.Random(seed << 40 | case)
    mend = chance.random() < 0.5
    kind = chance.choice(KINDS if mend else KINDS[:5])
    data = made(base, kind, mend, chance)
    path.write_bytes(data)
    word = f"{kind}, mended" if mend else kind
    try:
        meta, sections = read(path)
    except ArtifactError:
        return word, "refused"
    equal = meta == base[3][0] and len(sections) == len(base[3][1]) and all(map(same, sections, base[3][1]))
    if not mend and not equal:
        raise Wrong("other data were read, and no checksum was mended")
    for section in sections:
        codes = section.symbols is not None and section.array.size > 0
        if section.array.shape != section.shape or (codes and section.array.max() >= section.symbols):
            raise Wrong(f"tensor '{section.name}' is not what the index says")
    return word, "read, the same" if equal else "read, other data"


def work(first: int, seed: int, cases: int, checked: bool, place: Any, results: Any) -> None:
    """Reads every second damaged file; `place` holds the number of the one at hand."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        if checked:
            os.environ |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": folder}
        whole = files(Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        counts: Counter[tuple[str, str]] = Counter()
        failures: list[str] = []
        slowest = 0.0
        for case in range(first, cases, PROCESSES):
            place.value = case
            start = time.monotonic()
            try:
                counts[attempt(Path(folder) / "x.nxt", whole[case // PROCESSES % len(whole)], seed, case)] += 1
            except Exception as error:  # anything but a refusal is what this bench looks for
                counts["any", f"{type(error).__name__}"] += 1
                failures.append(f"case {case}: {error!r}\n{traceback.format_exc(limit=-4)}")
            slowest = max(slowest, time.monotonic() - start)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results.put((counts, failures[:20], slowest, most))
        place.value = -1


def main() -> None:
    """Runs two processes, watches that they go on, and tells what became of the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results, places = context.Queue(), [context.Value("q", 0) for _ in range(PROCESSES)]
    arguments = [(each, options.seed, options.cases, each == 1, places[each], results) for each in range(PROCESSES)]
    workers = [context.Process(target=work, args=each) for each in arguments]
    start = time.monotonic()
    for worker in workers:
        worker.start()
    found, lost = watched(workers, places, results)
    seconds = time.monotonic() - start
    counts = sum((each[0] for each in found), Counter())
    failures = [line for each in found for line in each[1]] + lost
    kinds, outcomes = (sorted({each[k] for each in counts}) for k in range(2))
    rows: list[dict[str, Any]] = [{"damage": kind, **{outcome: counts[kind, outcome] for outcome in outcomes}} for kind in kinds]
    rows.append({"damage": "all", **{outcome: sum(counts[kind, outcome] for kind in kinds) for outcome in outcomes}})
    from common import tell

    tell(
        "fuzz_file",
        f"{sum(counts.values()):,} damaged files: none crashes, hangs or lies ({sum(counts.values()) / seconds:,.0f} a second)",
        rows,
        cases=sum(counts.values()),
        fuzz_seed=options.seed,
        cases_a_second=sum(counts.values()) / seconds,
        slowest_case_s=max((each[2] for each in found), default=None),
        peak_memory_kib=max((each[3] for each in found), default=None),
        failures=failures,
    )
    if failures:
        raise SystemExit("\n".join(failures))


def watched(workers: list[Any], places: list[Any], results: Any) -> tuple[list[Any], list[str]]:
    """What the workers found, and how those ended that found nothing: a crash, or a file that took too long."""
    found: list[Any] = []
    lost: list[str] = []
    seen = [(-1, time.monotonic()) for _ in workers]
    open_workers = set(range(len(workers)))
    while open_workers:
        time.sleep(0.5)
        while not results.empty():
            found.append(results.get())
        for each in list(open_workers):
            case = places[each].value
            if case != seen[each][0]:
                seen[each] = case, time.monotonic()
            if not workers[each].is_alive():
                open_workers.remove(each)
                if case >= 0:
                    lost.append(f"case {case}: the process ended with {workers[each].exitcode}")
            elif case > 2 * PROCESSES and time.monotonic() - seen[each][1] > PATIENCE_S:
                workers[each].kill()
                open_workers.remove(each)
                lost.append(f"case {case}: took more than {PATIENCE_S} s")
    while len(found) + len(lost) < len(workers):
        found.append(results.get(timeout=10))
    return found, lost


if __name__ == "__main__":
    main()
