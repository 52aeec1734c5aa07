"""A file larger than memory: `enxuto pack` and `unpack` of 10 GB within 1 GB of memory, and one tensor read from it.

The file holds weights as training leaves them, half in bfloat16 and half in float32: Gaussian, each row with a scale of its own.
`python bench/file_large.py --size 0.5 --folder /tmp` is a quick run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import common
from enxuto.artifact.container import Reader

GB = 1e9
ROWS, COLUMNS = 4096, 4096
CHUNK = 1 << 24
Row = dict[str, Any]


def main() -> None:
    """Makes the file, packs and unpacks it in processes of their own, compares, reads one tensor; all is deleted after."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=float, default=10, help="GB of the file")
    options.add_argument("--folder", default=None, help="where it is written; else the folder for temporary files")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        original, packed, fast, back = (Path(name) / file for file in ("large.safetensors", "large.nxt", "fast.nxt", "back"))
        make(original, asked.size * GB)
        rows = [measured("pack", original, original, packed), measured("pack --fast", original, original, fast)]
        fast.unlink()
        rows.append(measured("unpack", original, packed, back))
        rows[-1]["same bytes"] = "yes" if same(original, back) else "NO"
        reading(packed, "bfloat16")  # loads the compiled code
        rows += [reading(packed, dtype) for dtype in ("bfloat16", "float32")]
    common.tell("file_large", f"{asked.size:g} GB are packed and unpacked within 1 GB of memory", rows)
    assert rows[2]["same bytes"] == "yes", "the file did not come back byte for byte"


def make(path: Path, size: float) -> None:
    """A safetensors file of so many bytes, written tensor by tensor."""
    rng = np.random.default_rng(common.SEED)
    pair = ROWS * COLUMNS * 6
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for layer in range(max(1, round(size / pair))):
        for dtype, itemsize in (("BF16", 2), ("F32", 4)):
            first, end = end, end + ROWS * COLUMNS * itemsize
            header[f"layers.{layer}.{dtype}"] = {"dtype": dtype, "shape": [ROWS, COLUMNS], "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in list(header.values())[1:]:
            for _ in range(0, ROWS, 512):
                scales = rng.lognormal(-4, 0.5, (512, 1)).astype(np.float32)
                values = rng.standard_normal((512, COLUMNS), np.float32) * scales
                file.write((values.view(np.uint32) >> 16).astype(np.uint16) if item["dtype"] == "BF16" else values)


def measured(what: str, original: Path, source: Path, target: Path) -> Row:
    """One command in a process of its own: seconds, the largest resident memory, and what became of the size."""
    verb, *flags = what.split()
    command = [sys.executable, "-m", "enxuto", verb, str(source), "-o", str(target), *flags]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    size = original.stat().st_size
    cpu = used.ru_utime + used.ru_stime
    return {
        "what": what,
        "MB": size / 1e6,
        "of original": target.stat().st_size / size,
        "peak MB": used.ru_maxrss * 1024 / 1e6,
        "seconds": wall,
        "CPU seconds": cpu,
        "MB/s": size / 1e6 / wall,
        "MB/s and core": size / 1e6 / cpu,
    }


def reading(path: Path, dtype: str) -> Row:
    """One tensor from the middle of the file, the file opened for it: seconds, and the bytes that are read."""
    start = time.perf_counter()
    with Reader(path) as reader:
        names = [entry.name for entry in reader.entries.values() if entry.dtype == dtype]
        entry = reader.entries[names[len(names) // 2]]
        read = [0]
        plain = reader._bytes
        reader._bytes = lambda first, last: (read.append(last - first), plain(first, last))[1]  # type: ignore[method-assign]
        array = reader.array(entry.name)
    wall = time.perf_counter() - start
    return {
        "what": f"one tensor, {dtype}",
        "MB": array.nbytes / 1e6,
        "of original": reader.bytes_of(entry) / array.nbytes,
        "seconds": wall,
        "MB/s": array.nbytes / 1e6 / wall,
        "MB read": sum(read) / 1e6,
    }


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while part := a.read(CHUNK):
            if part != b.read(CHUNK):
                return False
    return True


if __name__ == "__main__":
    main()
