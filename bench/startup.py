"""`import enxuto` costs under a second beyond torch, and `enxuto --help` answers in under a second."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import common

CASES = {
    "import torch": "import torch",
    "import torch, enxuto and its names": "import torch, enxuto; enxuto.Task, enxuto.compress, enxuto.load, enxuto.Prune",
    "import enxuto": "import enxuto",
    "enxuto --help": "import sys; sys.argv = ['enxuto', '--help']; from enxuto.cli import main; main()",
}


def main() -> None:
    """Each case in a fresh interpreter, interleaved."""
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(7):
        for name, code in CASES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            samples[name].append(time.perf_counter() - start)
    bare = median(samples["import torch"])
    rows = [
        {"case": name, "median_s": median(times), "beyond_torch_s": median(times) - bare if "torch," in name else None}
        for name, times in samples.items()
    ]
    common.tell("startup", "import enxuto costs under a second beyond torch; --help under a second", rows, samples_s=samples)


if __name__ == "__main__":
    main()
