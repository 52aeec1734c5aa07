"""How fast the coders are from Python, on one core: 4-bit symbols, weights in bfloat16 and float32, and a cold start.

Times are CPU seconds of this process, the coders taking turns, medians of some rounds; the compiled code is warm but for the cold
start, which is a fresh process, its second run, until it has decoded a stream or loaded a small file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

import common
from enxuto.artifact.container import write
from enxuto.artifact.sections import Section
from enxuto.coding import decode_array, decode_integers, encode_array, encode_integers

SYMBOLS, COUNT = 16, 4_000_000
SIDE = 2048
ROUNDS = 7
STARTS = 9
MILLION = 1e6
Ways = tuple[Callable[[], Any], Callable[[Any], Any]]
Row = dict[str, Any]


def main() -> None:
    """One table for codes, one for floats, one for the cold start."""
    torch.set_num_threads(1)
    common.tell("file_speed_codes", "4-bit codes: 150 million encoded and 400 million decoded a second and core", codes())
    claim = "bfloat16 at most 0.675 of raw at 500 MB/s and core both ways, float32 at most 0.84"
    common.tell("file_speed_floats", claim, [row for name, array in arrays().items() for row in floats(name, array)])
    claim = "a fresh process decodes its first stream within half a second beyond importing numpy"
    common.tell("file_speed_start", claim, starts(), counted="wall time from the start of the process until it has its result")


def codes() -> list[Row]:
    """Gaussian codes of 4 bits, as quantized weights are."""
    rng = np.random.default_rng(common.SEED)
    values = np.clip(np.rint(rng.normal(SYMBOLS / 2, SYMBOLS / 8, COUNT)), 0, SYMBOLS - 1).astype(np.uint8)
    matrix = values.reshape(2000, -1)
    shares = np.bincount(values, minlength=SYMBOLS) / COUNT
    entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()) * COUNT / 8
    coders: dict[str, Ways] = {
        "enxuto": (lambda: encode_integers(matrix, SYMBOLS), lambda text: decode_integers(text, COUNT, SYMBOLS)),
        "enxuto, fast": (
            lambda: encode_integers(matrix, SYMBOLS, fast=True),
            lambda text: decode_integers(text, COUNT, SYMBOLS),
        ),
    }
    try:
        import constriction

        model = constriction.stream.model.Categorical(shares, perfect=False)
        wide = values.astype(np.int32)

        def encode() -> Any:
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse(wide, model)
            return coder.get_compressed()

        coders["constriction ANS"] = (encode, lambda words: constriction.stream.stack.AnsCoder(words).decode(model, COUNT))
    except ImportError:
        print("SKIPPED constriction: not installed", flush=True)
    rows = []
    for name, taken in turns(coders, lambda found: np.array_equal(found, values)).items():
        rows.append({"coder": name, "of entropy": taken["bytes"] / entropy, **_speeds(taken, COUNT / MILLION, "M symbols/s")})
    return rows


def arrays() -> dict[str, NDArray[Any]]:
    """Weights as training leaves them: Gaussian, with and without scales of rows, and of a network if one was trained."""
    rng = np.random.default_rng(common.SEED)
    plain = (rng.standard_normal((SIDE, SIDE)) * 0.02).astype(np.float32)
    scaled = plain * rng.lognormal(0, 0.5, (SIDE, 1)).astype(np.float32)
    found = {"Gaussian": plain, "Gaussian, rows scaled": scaled}
    for path in sorted(common.CACHE.glob("lenet-5-fashion-mnist-*.safetensors"))[:1]:
        found["lenet-5, trained"] = max(load_file(path).values(), key=lambda array: array.size)
    both = {f"{name}, bfloat16": (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in found.items()}
    return both | {f"{name}, float32": array for name, array in found.items()}


def floats(name: str, array: NDArray[Any]) -> list[Row]:
    """One array under every coder."""
    raw = array.tobytes()
    coders: dict[str, Ways] = {
        word: (lambda fast=fast: encode_array(array, fast=fast), lambda text: decode_array(text, array.dtype, array.shape))  # type: ignore[misc]
        for word, fast in (("enxuto", False), ("enxuto, fast", True))
    }
    try:
        import zstandard

        for level in (3, 19):
            coders[f"zstd-{level}"] = (
                lambda level=level: zstandard.ZstdCompressor(level=level).compress(raw),  # type: ignore[misc]
                lambda text: np.frombuffer(zstandard.ZstdDecompressor().decompress(text), array.dtype).reshape(array.shape),
            )
    except ImportError:
        print("SKIPPED zstandard: not installed", flush=True)
    rows = []
    for coder, taken in turns(coders, lambda found: found.tobytes() == raw).items():
        rows.append({"weights": name, "coder": coder, "of raw": taken["bytes"] / len(raw)} | _speeds(taken, len(raw) / MILLION))
    return rows


def turns(coders: Mapping[str, Ways], right: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    """CPU seconds of each coder, once in every round; the slow ones in the first alone. All must give back what they got."""
    samples: dict[str, dict[str, Any]] = {}
    for number in range(-1, ROUNDS):  # the round before the first compiles and checks
        for name, (encode, decode) in coders.items():
            if number > 0 and name == "zstd-19":
                continue
            start = time.process_time()
            text = encode()
            middle = time.process_time()
            found = decode(text)
            end = time.process_time()
            if number < 0:
                if not right(found):
                    raise AssertionError(f"{name} did not give back what it got")
                samples[name] = {"bytes": memoryview(text).nbytes, "encode": [], "decode": []}
            else:
                samples[name]["encode"].append(middle - start)
                samples[name]["decode"].append(end - middle)
    return samples


def _speeds(taken: Mapping[str, Any], amount: float, unit: str = "MB/s") -> Row:
    row: Row = {f"{way} {unit}": amount / median(taken[way]) for way in ("encode", "decode")}
    return row | {"_seconds": {way: taken[way] for way in ("encode", "decode")}}


def starts() -> list[Row]:
    """Fresh processes in turn: one imports numpy, one decodes a stream besides, one loads a small file."""
    rng = np.random.default_rng(common.SEED)
    with tempfile.TemporaryDirectory() as folder:
        path, stream = Path(folder) / "small.nxt", Path(folder) / "stream"
        codes_ = np.clip(rng.normal(8, 2, (100, 200)), 0, 15).astype(np.uint8)
        bias = rng.standard_normal(4000).astype(np.float32)
        write(path, {}, [Section("codes", "uint8", (100, 200), 16, codes_), Section("bias", "float32", (4000,), None, bias)])
        stream.write_bytes(encode_integers(codes_, 16, fast=True))
        decode = f"from enxuto.coding import decode_integers; decode_integers(open({str(stream)!r}, 'rb').read(), 20_000, 16)"
        cases = {
            "import numpy": "pass",
            "and decode a stream": decode,
            "and load a file": f"from enxuto.artifact.container import read; read({str(path)!r})",
        }
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(-1, STARTS):  # the first start compiles what is not kept yet
            for name, code in cases.items():
                seconds = _until(f"import os, numpy; {code}; os.write(1, b'.')")
                if number >= 0:
                    samples[name].append(seconds)
    bare = median(samples["import numpy"])
    return [
        {"case": name, "median_s": median(taken), "beyond_numpy_s": median(taken) - bare, "_samples": taken}
        for name, taken in samples.items()
    ]


def _until(code: str) -> float:
    """Seconds from the start of a process until it says that it has done its work."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.read(1)
        seconds = time.perf_counter() - start
    if not said:
        raise AssertionError(f"failed: {code}")
    return seconds


if __name__ == "__main__":
    main()
