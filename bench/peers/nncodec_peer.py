"""nncodec (ISO/IEC 15938-17) on given integers or floats; run by an interpreter of its own, which has numpy below 2.

`python nncodec_peer.py integers IN.npz` codes int32 tensors and prints one JSON line: bytes and the best settings. Then each
line on the standard input asks for one more timed round, answered by one JSON line of CPU seconds, so that whoever runs
this can take turns with other coders. `python nncodec_peer.py floats IN.npz OUT.npz QP...` quantizes by itself, at each
quantization parameter with and without dependent quantization, and leaves what came back in OUT.npz.
`python nncodec_peer.py settings IN.npz OUT.npz` does so at each setting that a line of JSON asks for, one after the other.

Integers go in as int32 arrays, which nncodec codes as they are (payload type NNR_PT_INT: DeepCABAC, no quantization). With
dependent quantization its coder takes only what its own quantizer gave: other integers do not come back. Scan orders by
blocks are left out: on trained layers they were 1 to 6 % larger. `fast` encodes without choosing the adaptation rates.
`payload_bytes` are the bare arithmetic-coded streams, `bytes` the whole bitstream that `decompress` reads: unit headers,
shapes and names, the names being the shortest there are ("0", "1", ...).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
import time
import types

import numpy as np

for _name in ("", ".tensorflow_model", ".pytorch_model", ".use_case_init"):  # only for whole torch and TensorFlow models;
    _module = types.ModuleType("nncodec.framework" + _name)  # they import torchvision, which a CPU torch may not have
    sys.modules[_module.__name__] = _module
    if _name:
        setattr(sys.modules["nncodec.framework"], _name[1:], _module)

from nncodec import nnc  # noqa: E402
from nncodec.extensions import deepCABAC  # noqa: E402
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF  # noqa: E402

UNARY = (4, 10, 25, 64)  # cabac_unary_length_minus1: 10 is the default; 64 keeps codes of 7 bits out of the exponential part
PROFILE = 1  # what `compress` uses


def code(tensor, unary, skip_rows, adapt):
    """The bare stream of one tensor: what nncodec's coder/baseline.py does for NNR_PT_INT."""
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(unary + 1, adapt)
    zero = np.zeros(tensor.shape[0], np.int32)
    if tensor.ndim > 1:
        zero[:] = ~tensor.reshape(tensor.shape[0], -1).any(axis=1)
    encoder.encodeLayer(tensor, 0, 0, PROFILE, 0, skip_rows, zero, *HDSP_OPTS_OFF(), 0, 0)
    return encoder.finish()


def uncode(stream, shape, unary):
    """The tensor again."""
    decoder = deepCABAC.Decoder()
    decoder.setStream(stream)
    decoder.initCtxModels(unary + 1)
    tensor = np.zeros(shape, np.int32)
    decoder.decodeLayer(tensor, 0, 0, PROFILE, 0, *HDSP_OPTS_OFF(), 0, 0)
    return tensor


def whole(tensors, unary, skip_rows, adapt):
    """The bitstream of all tensors."""
    with contextlib.redirect_stdout(io.StringIO()):
        return nnc.compress(
            dict(tensors),
            bitstream_path=None,
            cabac_unary_length_minus1=unary,
            row_skipping=bool(skip_rows),
            param_opt=bool(adapt),
            use_dq=False,
            return_bitstream=True,
        )


def integers(path):
    """Finds the best setting for these tensors, checks that they come back, then answers one timed round a line."""
    with np.load(path) as file:
        tensors = {str(i): np.ascontiguousarray(file[key], dtype=np.int32) for i, key in enumerate(file.files)}
    settings = itertools.product(UNARY, (0, 1), (1,))
    sizes = {setting: sum(len(code(tensor, *setting)) for tensor in tensors.values()) for setting in settings}
    plain = (10, 0, 1)
    best = min(sizes, key=sizes.get)
    payload = sizes[best]
    start = time.process_time()
    bitstream = whole(tensors, *best)
    encoded = time.process_time()
    back = nnc.decompress(bitstream)
    decoded = time.process_time()
    same = set(back) == set(tensors) and all(np.array_equal(back[key], tensors[key]) for key in tensors)
    if not same:
        raise SystemExit("nncodec did not give the integers back")
    answer(
        bytes=len(bitstream),
        payload_bytes=payload,
        default_payload_bytes=sizes[plain],
        unary_length_minus1=best[0],
        row_skipping=best[1],
        whole_encode_seconds=encoded - start,
        whole_decode_seconds=decoded - encoded,
    )
    for _ in sys.stdin:
        start = time.process_time()
        streams = {key: code(tensor, *best) for key, tensor in tensors.items()}
        encoded = time.process_time()
        back = {key: uncode(streams[key], tensor.shape, best[0]) for key, tensor in tensors.items()}
        decoded = time.process_time()
        for tensor in tensors.values():
            code(tensor, *best[:2], 0)
        fast = time.process_time() - decoded
        if not all(np.array_equal(back[key], tensor) for key, tensor in tensors.items()):
            raise SystemExit("nncodec did not give the integers back")
        answer(encode_seconds=encoded - start, decode_seconds=decoded - encoded, fast_encode_seconds=fast)


def floats(path, out, parameters):
    """The network at each quantization parameter, weights with it and everything else at nncodec's default, -75."""
    with np.load(path) as file:
        named = {str(i): (key, np.ascontiguousarray(file[key], dtype=np.float32)) for i, key in enumerate(file.files)}
    tensors = {short: value for short, (_, value) in named.items()}
    rows, kept = [], {}
    for parameter, dependent in itertools.product(parameters, (False, True)):
        with contextlib.redirect_stdout(io.StringIO()):
            bitstream = nnc.compress(
                dict(tensors),
                bitstream_path=None,
                qp=parameter,
                use_dq=dependent,
                row_skipping=True,
                return_bitstream=True,
            )
        for short, value in nnc.decompress(bitstream).items():
            kept[f"{parameter}/{int(dependent)}/{named[short][0]}"] = value
        rows.append({"qp": parameter, "dependent": dependent, "bytes": len(bitstream)})
    np.savez(out, **kept)
    answer(rows=rows)


def settings(path, out):
    """The network at each setting that a line of the standard input names, as JSON; `out` holds what came back."""
    with np.load(path) as file:
        named = {str(i): (key, np.ascontiguousarray(file[key], dtype=np.float32)) for i, key in enumerate(file.files)}
    answer(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()):
            bitstream = nnc.compress(
                {short: value for short, (_, value) in named.items()},
                bitstream_path=None,
                row_skipping=True,
                return_bitstream=True,
                **asked,
            )
        np.savez(out, **{named[short][0]: value for short, value in nnc.decompress(bitstream).items()})
        answer(bytes=len(bitstream))


def answer(**fields):
    """One line of JSON."""
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "integers":
        integers(sys.argv[2])
    elif sys.argv[1] == "settings":
        settings(sys.argv[2], sys.argv[3])
    else:
        floats(sys.argv[2], sys.argv[3], [int(word) for word in sys.argv[4:]])
