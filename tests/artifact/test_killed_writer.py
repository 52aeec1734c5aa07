"""A writer killed at any moment leaves the old file or the new one."""

import os
import subprocess
import sys

CODE = """
import os, random, signal, sys, time
import numpy as np
from enxuto.artifact.container import read, write
from enxuto.artifact.sections import Section

path, moment, seen = sys.argv[1], random.Random(0), []
chance = np.random.default_rng(0)
kinds = [[chance.integers(0, 2**12, (60, 400)).astype(np.float32) for _ in range(4)] for _ in range(2)]

def put(number):
    sections = (Section(f"t{i}", "float32", each.shape, None, each) for i, each in enumerate(kinds[number]))
    write(path, {"kind": number}, sections)

put(0), read(path)
start = time.monotonic()
put(1)
once = time.monotonic() - start
for kill in range(100):
    writer = os.fork()
    if writer == 0:
        while True:
            put(kill % 2)
            put(1 - kill % 2)
    time.sleep(moment.uniform(0.05, 2.5) * once)
    os.kill(writer, signal.SIGKILL)
    assert os.waitpid(writer, 0)[1] == signal.SIGKILL
    meta, sections = read(path)
    assert all(np.array_equal(a.array, b) for a, b in zip(sections, kinds[meta["kind"]], strict=True))
    seen.append(meta["kind"])
print(sum(seen), len([name for name in os.listdir(os.path.dirname(path)) if name.endswith(".part")]))
"""


def test_a_hundred_kills_leave_the_old_file_or_the_new_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "x.nxt"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ones, unfinished = map(int, done.stdout.split())
    assert 0 < ones < 100  # both files were seen
    assert unfinished > 0  # and kills came in the middle of a file
