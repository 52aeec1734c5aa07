"""nncf and OpenVINO on a float .onnx file; run by an interpreter of its own.

`python nncf_peer.py FLOAT.onnx CALIBRATION.npz SAMPLE.npz FOLDER` quantizes with nncf's defaults on the arrays of the calibration
file and prints one JSON line: the bytes of the files. Each line on the standard input asks for outputs, {"inputs": IN.npz,
"outputs": OUT.npz}, or for a timed round, {}: CPU milliseconds a call on the sample, of the float and of the quantized network.
One thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import openvino

SHORTEST_MS = 2.0


def main(path, calibration, sample, folder):
    """Quantizes, then answers line after line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nncf prints what it is doing
    core = openvino.Core()
    given = arrays(calibration)
    made = nncf.quantize(core.read_model(path), nncf.Dataset(given), subset_size=len(given))
    openvino.save_model(made, Path(folder) / "nncf.xml", compress_to_fp16=False)
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    calls = {
        name: core.compile_model(model, "CPU", settings)
        for name, model in {"openvino float": core.read_model(path), "openvino, nncf": made}.items()
    }
    one = arrays(sample)[0]
    repeats = {
        name: max(1, round(SHORTEST_MS / min(clocked(call, one, 1) for _ in range(10)) + 0.5)) for name, call in calls.items()
    }
    size = sum((Path(folder) / f"nncf{end}").stat().st_size for end in (".xml", ".bin"))
    print(json.dumps({"bytes": size}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked:
            found = [calls["openvino, nncf"](each)[0] for each in arrays(asked["inputs"])]
            np.savez(asked["outputs"], *found)
            print("{}", file=answers, flush=True)
        else:
            print(json.dumps({name: clocked(call, one, repeats[name]) for name, call in calls.items()}), file=answers, flush=True)


def arrays(path):
    """Those of a file, in their order."""
    with np.load(path) as file:
        return [file[key] for key in file.files]


def clocked(call, given, repeats):
    """CPU milliseconds of this process a call: OpenVINO computes on a thread of its own."""
    start = time.process_time()
    for _ in range(repeats):
        call(given)
    return 1e3 * (time.process_time() - start) / repeats


if __name__ == "__main__":
    main(*sys.argv[1:])
