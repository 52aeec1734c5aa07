"""zipnn on the bits of float arrays; run by an interpreter of its own.

`python zipnn_peer.py IN.npz` takes uint16 and uint32 arrays named "name|float16", "name|bfloat16" or "name|float32", and
prints one JSON line: the bytes of each with the method that gave fewest. Each line on the standard input asks for one more
timed round, answered by one JSON line of CPU seconds for each. One thread. zipnn reorders its input in place: it gets a copy.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from zipnn import ZipNN

METHODS = ("AUTO", "HUFFMAN", "ZSTD")
INTEGERS = {2: (np.int16, torch.int16), 4: (np.int32, torch.int32)}


def main(path):
    """Finds the best method for each array, checks that it comes back, then answers one timed round a line."""
    torch.set_num_threads(1)
    arrays = {}
    with np.load(path) as file:
        for key in file.files:
            signed, _ = INTEGERS[file[key].itemsize]
            arrays[key] = torch.from_numpy(file[key].view(signed)).view(getattr(torch, key.rpartition("|")[2]))
    best = {}
    for key, tensor in arrays.items():
        tried = {}
        for method in METHODS:
            data = bytes(coder(method).compress(tensor.clone()))
            _, bits = INTEGERS[tensor.element_size()]
            back = coder(method).decompress(data)
            if back.shape == tensor.shape and torch.equal(back.view(bits), tensor.view(bits)):
                tried[method] = len(data)
            else:
                print(f"zipnn {method} did not give {key} back", file=sys.stderr)
        if tried:
            method = min(tried, key=tried.get)
            best[key] = {"bytes": tried[method], "method": method}
    print(json.dumps(best), flush=True)
    for _ in sys.stdin:
        seconds = {}
        for key, found in best.items():
            copy = arrays[key].clone()
            start = time.process_time()
            data = coder(found["method"]).compress(copy)
            encoded = time.process_time()
            coder(found["method"]).decompress(data)
            seconds[key] = {"encode_seconds": encoded - start, "decode_seconds": time.process_time() - encoded}
        print(json.dumps(seconds), flush=True)


def coder(method):
    """A fresh one: its state is for one tensor."""
    return ZipNN(method=method, input_format="torch", threads=1)


if __name__ == "__main__":
    main(sys.argv[1])
