"""Packed files beside `zstd -19`, the simple baseline: files of every kind that people pack, some made to repeat, each way.

Further files can be named on the command line. No file may be larger than zstd's by more than half a percent, or 100 bytes: a
.nxt file has names and checksums for some 60.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
import zstandard
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import enxuto as ex
from common import tell
from enxuto import zoo
from enxuto.artifact.pack import pack, unpack

ALLOWED, FRAME = 1.005, 100


def graph(path: Path, tensors: dict[str, np.ndarray], *, in_nodes: bool = False) -> None:
    """An .onnx file that holds these tensors as initializers, or inside Constant nodes."""
    protos = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    nodes = [helper.make_node("Constant", [], [proto.name], value=proto) for proto in protos] if in_nodes else []
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [] if in_nodes else protos)), path)


def made(folder: Path) -> None:
    """The files."""
    chance = np.random.default_rng(0)
    angle = 2 * np.pi * np.outer(np.arange(201), np.arange(400)) / 400
    bank = np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)[:, None]
    weights = {f"layer{n}.weight": (0.05 * chance.normal(size=(256, 128))).astype(np.float32) for n in range(6)}
    first = next(iter(weights.values()))
    graph(folder / "spectrum.onnx", {"stft": bank, "out": first})
    graph(folder / "weights.onnx", weights)
    graph(folder / "weights in nodes.onnx", weights, in_nodes=True)
    graph(folder / "rounded.onnx", {name: np.round(value / 0.01) * np.float32(0.01) for name, value in weights.items()})
    graph(folder / "sparse.onnx", {name: np.where(abs(value) > 0.1, value, 0) for name, value in weights.items()})
    graph(folder / "tiled.onnx", {"t": np.tile(chance.normal(size=(1, 100_000)).astype(np.float32), (12, 1))})
    graph(folder / "integers.onnx", {"ids": chance.integers(0, 5000, 40_000), "t": np.tile(chance.integers(0, 2**40, 500), 80)})
    small = {f"block.{n}.{part}.weight": chance.normal(size=(3, 5)).astype(np.float32) for n in range(40) for part in "qkvo"}
    graph(folder / "many small.onnx", small)
    graph(folder / "one small.onnx", {"w": first[:4, :4]})
    tied = torch.from_numpy(first)
    save_file({"embed": tied, "head": tied.clone(), "half": tied.half()}, folder / "tied.safetensors")
    state = zoo.build("lenet-300-100").state_dict()
    torch.save(
        {"model": state, "optimizer": {"step": 7, "moments": {k: torch.zeros_like(v) for k, v in state.items()}}},
        folder / "training.pt",
    )
    ex.export(zoo.build("resnet-20").eval(), folder / "resnet-20.onnx", calibration=[torch.randn(2, 1, 28, 28)])


def main() -> int:
    """1 when a file is larger than it may be."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder)
        for path in [*sorted(folder.iterdir()), *map(Path, sys.argv[1:])]:
            packed, back = folder / "packed.nxt", folder / "back"
            pack(path, packed)
            unpack(packed, back)
            data = path.read_bytes()
            assert back.read_bytes() == data, f"{path} did not come back"
            other = len(zstandard.ZstdCompressor(level=19).compress(data))
            size = packed.stat().st_size
            rows.append({"file": path.name, "bytes": len(data), "zstd -19": other, "packed": size, "of zstd": size / other})
    larger = [row for row in rows if row["packed"] > max(ALLOWED * row["zstd -19"], row["zstd -19"] + FRAME)]
    claim = (
        f"files not larger than those of zstd -19 by half a percent or {FRAME} bytes: {len(rows) - len(larger)} of {len(rows)}"
    )
    tell("file_zstd", claim, rows)
    return int(bool(larger))


if __name__ == "__main__":
    sys.exit(main())
