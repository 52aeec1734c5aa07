"""Every lie of tests/lies.py told to `enxuto.load`, in one process: how many were refused, ran, or failed, and what they took.

`python bench/hostile_files.py [--step N]` prints a table and writes JSON; it ends with code 1 when one failed or took more than
ten times its file (and 16 MiB, which allocators and error messages take).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import tell

NOISE_BYTES = 1 << 24


def main() -> int:
    """Tells the lies and counts what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="tell each N-th only")
    step = parser.parse_args().step
    tests = Path(__file__).parents[1] / "tests"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, tests / "lies.py", folder, str(step)], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    told = list(zip((line["lie"] for line in lines[::2]), lines[1::2], strict=False))
    counts = Counter(outcome["found"].partition(":")[0] for _, outcome in told)
    greedy = [name for name, outcome in told if outcome["grown_bytes"] > 10 * outcome["file_bytes"] + NOISE_BYTES]
    failed = [name for name, outcome in told if outcome["found"] not in ("ran", "refused", "not written")]
    if done.returncode:
        failed.append(f"{lines[-1]['lie']} ended the process ({done.returncode})")
    for name in [*failed, *greedy]:
        print(name)
    rows = [{"outcome": found, "lies": count} for found, count in counts.most_common()]
    tell("hostile_files", f"{len(told):,} lies: {len(failed)} fail later, {len(greedy)} take ten times the file", rows, step=step)
    return bool(failed or greedy)


if __name__ == "__main__":
    sys.exit(main())
