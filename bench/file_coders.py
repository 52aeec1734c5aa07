"""How small and how fast the entropy coder is beside others: nncodec, zipnn, zstandard, gzip, constriction, ONNX.

Tables: the same integers of every network of the zoo, coded by each; how fast; the files of whole networks; floats without
loss; layers that were trained at 90 % sparsity; and nncodec quantizing by itself against enxuto at an equal drop.
Times are CPU seconds of one process, the coders taking turns, medians of some rounds; nncodec is timed inside its C++ coder,
with the setting that gave it the smallest streams. nncodec and zipnn run in environments of their own (see `peers`).
`python bench/file_coders.py` does all, `python bench/file_coders.py integers quality` some of them.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

import common
import enxuto as ex
import peers
from enxuto import data, zoo
from enxuto.artifact import container
from enxuto.coding import decode_array, decode_integers, encode_array, encode_integers
from enxuto.exporters.onnx import to_onnx
from enxuto.judging import quality
from enxuto.layers import AffineTensor, CodedTensor, TableTensor
from enxuto.measure import save_original

NETWORKS: Mapping[str, tuple[str, int, dict[str, object]]] = {
    "lenet-300-100": ("fashion-mnist", 10, {}),
    "lenet-5": ("fashion-mnist", 2, {}),
    "resnet-8": ("fashion-mnist", 3, {}),
    "resnet-20": ("fashion-mnist", 6, {"stem_stride": 2}),
    "mobilenet-v2": ("digits", 40, {}),  # an epoch of Fashion-MNIST takes ten minutes
    "transformer": ("fashion-mnist", 2, {}),
    "gru": ("fashion-mnist", 2, {}),
    "lstm": ("fashion-mnist", 2, {}),
}
"""Data set, epochs and sizes: minutes of training, enough to give weights the shape that training gives them."""
KNOWN = 0.8  # of the validation split; twelve epochs of MobileNetV2 gave 0.92 on one processor and 0.31 on another

SETTINGS: Mapping[str, Sequence[ex.Step]] = {
    "8 bit": [ex.Quantize(bits=8)],
    "90% 16 val.": [ex.Prune(0.9), ex.Share(bits=4)],
    "95% 4 bit": [ex.Prune(0.95), ex.Quantize(bits=4)],
}
"""Bits of a weight, or values that the weights share; and the zeros, all weights together, without training again."""
GRIDS: Mapping[str, Callable[..., ex.Step]] = {
    "Quantize": ex.Quantize,
    "Quantize(per='tensor', fit='absmax')": functools.partial(ex.Quantize, per="tensor", fit="absmax"),
    "Quantize(per='network', fit='absmax')": functools.partial(ex.Quantize, per="network", fit="absmax"),
    "Share": ex.Share,
}
TENSORS = ((64, 16), (128, 8), (256, 4), (512, 1), (2048, 1))
"""Sides and copies of made matrices: from which size on the calls of Python no longer count."""
PARTS = ("integers", "whole", "floats", "sparse", "quality")
MILLION = 1e6
MAX_DROP = 0.005
LARGE = 100_000  # weights of a tensor from which the goal is 1.01 of the entropy; the largest ratio is told
Integers = dict[str, tuple[NDArray[Any], int, int]]  # codes, symbols and the code of zero, by the name of the weight
Row = dict[str, Any]


def main(parts: Sequence[str]) -> None:
    """The tables that were asked for."""
    torch.set_num_threads(1)
    _warm_up()
    nncodec = peers.interpreter("nncodec") if {"integers", "whole", "sparse", "quality"} & set(parts) else None
    zipnn = peers.interpreter("zipnn") if "floats" in parts else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "integers" in parts:
            same_integers(folder, nncodec)
        if "whole" in parts:
            whole_files(folder, nncodec)
        if "floats" in parts:
            lossless_floats(folder, zipnn)
        if "sparse" in parts:
            sparse_layers(folder, nncodec)
        if "quality" in parts:
            equal_quality(folder, nncodec)


def same_integers(folder: Path, nncodec: Path | None) -> None:
    """Every network, made into integers in three ways: bytes of the streams, and speed."""
    sizes, speeds = [], []
    for name in NETWORKS:
        _, task = network(name)
        for setting, steps in SETTINGS.items():
            small, _ = ex.run(task, list(steps))
            size, speed = coded(folder, integers(small), nncodec)
            sizes.append({"integers": f"{name} {setting}", **size})
            speeds.append({"integers": f"{name} {setting}", **speed})
            print(f"{name} {setting}: {size['enxuto']} bytes, entropy {size['entropy']}", flush=True)
    for side, copies in TENSORS:
        for zeros, symbols in ((0.0, 255), (0.9, 16)):
            size, speed = coded(folder, made(side, copies, zeros, symbols), nncodec)
            name = f"{copies} x {side}x{side}, " + (f"{zeros:.0%} {symbols} val." if zeros else "8 bit")
            speeds.append({"integers": name, **speed})
            print(f"{name}: {size['enxuto']} bytes, entropy {size['entropy']}", flush=True)
    counted = "streams of the integers only, each tensor by itself; no names and shapes on either side"
    claim = "The same integers, bytes: smaller than nncodec on every network, at most 1.01 of the order-0 entropy"
    common.tell("file_coders_integers", claim, sizes, counted=counted, networks=NETWORKS)
    claim = "The same integers, million symbols a second of CPU: fast=True is at least 10 times nncodec both ways"
    counted = (
        "encode_integers with all that it tries, decode_integers; nncodec's C++ coder without its Python, at the setting of "
        "the fewest bytes, which it was told; 'fast' is enxuto with fast=True; 'whole' is nncodec's compress and decompress, "
        "its Python and a file of all tensors, once, against the calls of enxuto; the last rows are by size of a made tensor"
    )
    common.tell("file_coders_speed", claim, speeds, counted=counted)


def whole_files(folder: Path, nncodec: Path | None) -> None:
    """The same networks and integers as files, names and floats with them."""
    wholes, files = [], []
    for name in NETWORKS:
        model, task = network(name)
        row = original_files(folder, name, model, task)
        for setting, steps in SETTINGS.items():
            small, _ = ex.run(task, list(steps))
            path = folder / "small.nxt"
            ex.save(small, path, original=model)
            row[f"enxuto {setting}"] = path.stat().st_size
            whole: Row = {"integers": f"{name} {setting}", "enxuto": path.stat().st_size}
            if nncodec is not None:
                parts = container.sizes(path).items()
                rest = sum(count for key, count in parts if key != container.HEADER and not key.endswith(".codes"))
                with _nncodec(folder, nncodec, integers(small)) as peer:
                    whole |= {"nncodec": peer.first["bytes"] + rest, "of that, floats and scales": rest}
                whole["ratio"] = whole["enxuto"] / whole["nncodec"]
            wholes.append(whole)
            print(whole, flush=True)
        files.append(row)
    counted = (
        "enxuto: the .nxt on disk, which also says how the network is built; nncodec: its bitstream of the integers with the "
        "shortest names, and what the .nxt spends on scales, codebooks, biases and norms"
    )
    common.tell("file_coders_whole", "Whole files in bytes: smaller than nncodec on every network", wholes, counted=counted)
    common.tell("file_coders_files", "Files of whole networks in bytes; all but enxuto's are float32", files)


def made(side: int, copies: int, zeros: float, symbols: int) -> Integers:
    """Square matrices of Gaussian codes, of which some are the middle one, by chance."""
    rng = np.random.default_rng(common.SEED)
    found: Integers = {}
    for number in range(copies):
        codes = np.clip(np.rint(rng.normal(symbols // 2, symbols / 8, (side, side))), 0, symbols - 1)
        codes[rng.random(codes.shape) < zeros] = symbols // 2
        found[str(number)] = (codes.astype(np.uint8), symbols, symbols // 2)
    return found


def lossless_floats(folder: Path, zipnn: Path | None) -> None:
    """Trained weights and one large Gaussian tensor with a scale for each row, in three formats."""
    generator = torch.Generator().manual_seed(common.SEED)
    wide = torch.randn(4096, 4096, generator=generator) * torch.rand(4096, 1, generator=generator).mul(3).exp() * 0.01
    subjects: dict[str, list[torch.Tensor]] = {}
    for name in ("lenet-5", "resnet-20", "mobilenet-v2"):
        model, _ = network(name)
        subjects[name] = [value.detach() for value in model.state_dict().values() if value.numel() >= 1000]
    formats = (torch.float32, torch.float16, torch.bfloat16)
    cases = [(name, values, dtype) for name, values in subjects.items() for dtype in formats]
    ratios, speeds = [], []
    for name, values, dtype in [*cases, ("gauss 4096x4096", [wide], torch.bfloat16)]:
        word = str(dtype).removeprefix("torch.")
        arrays = {str(index): _bits(value.to(dtype)) for index, value in enumerate(values)}
        ratio, speed = lossless(folder, arrays, word, zipnn)
        ratios.append({"weights": name, "format": word, **ratio})
        speeds.append({"weights": name, "format": word, **speed})
        print(ratios[-1], flush=True)
    counted = "tensors of 1,000 weights and more, each by itself; zipnn with the best of its methods; one thread"
    common.tell("file_coders_floats", "Float weights without loss: raw bytes by coded bytes", ratios, counted=counted)
    claim = "Float weights without loss: MB of floats a second of CPU"
    common.tell("file_coders_floats_speed", claim, speeds, counted=counted)


def sparse_layers(folder: Path, nncodec: Path | None) -> None:
    """Layers that were pruned to 90 % and trained again: rows and columns then differ by themselves."""
    rows = []
    for name, layer, epochs in (("lenet-300-100", "fc1", 2), ("resnet-20", "stages.2.1.conv1", 2)):
        model, task = network(name)
        model = recovered(name, model, task, epochs)
        for setting, steps in {
            "4 bits": [ex.Quantize(bits=4)],
            "16 values": [ex.Share(bits=4)],
            "8 bits": [ex.Quantize(bits=8)],
        }.items():
            small, _ = ex.run(common.task(model), steps)
            codes = {key: value for key, value in integers(small).items() if key.startswith(layer + ".")}
            size, _ = coded(folder, codes, nncodec)
            (array, _, zero), *_ = codes.values()
            share = float((array == zero).mean())
            rows.append({"layer": f"{name} {layer}", "setting": setting, "zeros": share, **size})
            print(rows[-1], flush=True)
    claim = "Layers pruned to 90 % and trained again: 3 % below the order-0 entropy"
    common.tell("file_coders_sparse", claim, rows)


def equal_quality(folder: Path, nncodec: Path | None) -> None:
    """Both quantize by themselves, without training: the smallest file of each grid that loses at most half a point."""
    rows = []
    for name in ("lenet-300-100", "resnet-20"):
        model, task = network(name)
        before = _mean(task, model)
        found = []
        for zeros, bits, grid in itertools.product((0.0, 0.3, 0.5, 0.7), (4, 5, 6, 7), GRIDS):
            steps = [ex.Prune(zeros)] * (zeros > 0) + [GRIDS[grid](bits=bits, biases=8)]
            small, _ = ex.run(task, steps)
            path = folder / "small.nxt"
            ex.save(small, path, original=model)
            row = {"coder": f"enxuto {grid}", "setting": f"{zeros:.0%} zeros, {bits} bits"}
            found.append({**row, "bytes": path.stat().st_size, "drop": before - _mean(task, small)})
        if nncodec is not None:
            found += _nncodec_quantizes(folder, nncodec, model, task, before)
        for coder in dict.fromkeys(row["coder"] for row in found):
            tried = [row for row in found if row["coder"] == coder]
            fitting = [row for row in tried if row["drop"] <= MAX_DROP]
            if fitting:
                rows.append({"network": name, **min(fitting, key=lambda row: row["bytes"]), "_tried": tried})
    claim = "Quantized without training: the smallest file that loses at most half a point on the validation split"
    common.tell("file_coders_quality", claim, rows)


def _mean(task: ex.Task, model: nn.Module) -> float:
    return float(quality(task.evaluate, model).mean())


def _nncodec_quantizes(folder: Path, python: Path, model: nn.Module, task: ex.Task, before: float) -> list[Row]:
    state = model.state_dict()
    np.savez(folder / "floats.npz", **{key: value.numpy() for key, value in state.items() if value.is_floating_point()})
    parameters = range(-26, -12, 2)
    rows: list[Row] = []
    with peers.Peer(python, "nncodec", "floats", folder / "floats.npz", folder / "back.npz", *parameters) as peer:
        tried = peer.first["rows"]
    with np.load(folder / "back.npz") as back:
        for row in tried:
            start = f"{row['qp']}/{int(row['dependent'])}/"
            values = {key.removeprefix(start): torch.from_numpy(back[key]) for key in back.files if key.startswith(start)}
            other, _ = ex.run(task, [])
            other.load_state_dict({key: values.get(key, value).reshape(value.shape) for key, value in state.items()})
            words = f"qp {row['qp']}" + (", dependent" if row["dependent"] else "")
            drop = before - _mean(task, other)
            rows.append({"coder": "nncodec", "setting": words, "bytes": row["bytes"], "drop": drop})
    return rows


def coded(folder: Path, codes: Integers, nncodec: Path | None) -> tuple[Row, Row]:
    """The same integers through each coder: bytes, and million symbols a second both ways."""
    count = sum(array.size for array, _, _ in codes.values())
    streams = {key: encode_integers(array, symbols) for key, (array, symbols, _) in codes.items()}
    for key, (array, symbols, _) in codes.items():
        if not np.array_equal(decode_integers(streams[key], array.size, symbols), array.reshape(-1)):
            raise AssertionError(f"'{key}' did not come back")
    raw = [np.ascontiguousarray(array).tobytes() for array, _, _ in codes.values()]
    ours = sum(map(len, streams.values()))
    entropy = sum(entropy_bytes(array) for array, _, _ in codes.values())
    size: Row = {
        "_weights": count,
        "gzip": sum(len(gzip.compress(text, 9)) for text in raw),
        "zstd-19": _zstandard(raw),
        "entropy": round(entropy),
    }
    clocks: dict[str, Callable[[], Mapping[str, float]]] = {
        "enxuto": lambda: _our_round(codes, fast=False),
        "fast": lambda: _our_round(codes, fast=True),
    }
    ranged = _constriction(codes)
    if ranged is not None:
        size["ANS"], clocks["ANS"] = ranged
    peer = None
    if nncodec is not None:
        peer = _nncodec(folder, nncodec, codes)
        size["nncodec"], size["_nncodec"] = peer.first["payload_bytes"], peer.first
        clocks["nncodec"] = peer.round
    size["fast"] = sum(len(encode_integers(array, symbols, fast=True)) for array, symbols, _ in codes.values())
    size |= {"enxuto": ours, "/entropy": ours / entropy if entropy else None}
    large = {key: entropy_bytes(array) for key, (array, _, _) in codes.items() if array.size > LARGE}
    size["large /entropy"] = max((len(streams[key]) / least for key, least in large.items() if least), default=None)
    if peer is not None:
        size["/nncodec"] = ours / peer.first["payload_bytes"]
    with peer or tempfile.TemporaryFile():
        samples = turns(clocks, 3 if count > MILLION else 5)
    speed: Row = {"symbols": count}
    for way, word in (("encode", "enc"), ("decode", "dec")):
        seconds = {coder: median(sample[f"{way}_seconds"] for sample in taken) for coder, taken in samples.items()}
        speed |= {f"{word} {coder}": count / MILLION / max(value, 1e-9) for coder, value in seconds.items()}
        if "nncodec" in seconds:
            speed[f"{word} x"] = seconds["nncodec"] / max(seconds["enxuto"], 1e-9)
            speed[f"{word} x, fast"] = seconds["nncodec"] / max(seconds["fast"], 1e-9)
            speed[f"{word} x, fast, whole"] = size["_nncodec"][f"whole_{way}_seconds"] / max(seconds["fast"], 1e-9)
    return size, {**speed, "_samples": samples}


def lossless(folder: Path, arrays: Mapping[str, NDArray[Any]], word: str, zipnn: Path | None) -> tuple[Row, Row]:
    """The same floats, as bits, through each coder: raw bytes by coded bytes, and MB a second both ways."""
    total = sum(array.nbytes for array in arrays.values())
    raw = [array.tobytes() for array in arrays.values()]
    streams = [_encoded(array, word) for array in arrays.values()]
    for stream, array in zip(streams, arrays.values(), strict=True):
        if not np.array_equal(_decoded(stream, array, word), array):
            raise AssertionError("floats did not come back")
    ours = sum(map(len, streams))
    coders: dict[str, tuple[Callable[[], Sequence[Any]], Callable[[Sequence[Any]], object]]] = {
        "enxuto": (
            lambda: [_encoded(array, word) for array in arrays.values()],
            lambda texts: [_decoded(text, array, word) for text, array in zip(texts, arrays.values(), strict=True)],
        ),
        "gzip": (
            lambda: [gzip.compress(text, 9) for text in raw],
            lambda texts: [gzip.decompress(text) for text in texts],
        ),
    }
    try:
        import zstandard

        coders["zstd-19"] = (
            lambda: [zstandard.ZstdCompressor(level=19).compress(text) for text in raw],
            lambda texts: [zstandard.ZstdDecompressor().decompress(text) for text in texts],
        )
    except ImportError:
        print("SKIPPED zstandard: not installed", flush=True)
    row: Row = {"bytes": total, "enxuto": total / ours}
    clocks: dict[str, Callable[[], Mapping[str, float]]] = {}
    for coder, (encode, decode) in coders.items():
        clocks[coder] = lambda encode=encode, decode=decode: _timed(encode, decode)  # type: ignore[misc]
    peer = None
    if zipnn is not None:
        np.savez(folder / "bits.npz", **{f"{key}|{word}": array for key, array in arrays.items()})
        peer = peers.Peer(zipnn, "zipnn", folder / "bits.npz")
        if len(peer.first) == len(arrays):
            row["zipnn"] = total / sum(found["bytes"] for found in peer.first.values())
            clocks["zipnn"] = lambda: _summed(peer.round())
        else:
            print(f"SKIPPED zipnn on these {word}: it gave {len(peer.first)} of {len(arrays)} tensors back", flush=True)
    with peer or tempfile.TemporaryFile():
        slow = {coder: clocks.pop(coder) for coder in ("gzip", "zstd-19") if coder in clocks}
        samples = turns(clocks, 5 if total < 16 * MILLION else 2) | turns(slow, 1)  # one is enough to see that they are slow
    row |= {coder: total / taken[0]["bytes"] for coder, taken in samples.items() if coder != "zipnn"}
    speed: Row = {}
    for way in ("encode", "decode"):
        for coder, taken in samples.items():
            seconds = median(sample[f"{way}_seconds"] for sample in taken)
            speed[f"{way[:3]} {coder}"] = total / MILLION / max(seconds, 1e-9)
    return row, {**speed, "_samples": samples}


def turns(clocks: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int) -> dict[str, list[Mapping[str, float]]]:
    """Each coder once in every round, so that a busy machine is busy for all of them."""
    samples: dict[str, list[Mapping[str, float]]] = {coder: [] for coder in clocks}
    for _ in range(rounds):
        for coder, clock in clocks.items():
            samples[coder].append(clock())
    return samples


def network(name: str) -> tuple[nn.Module, ex.Task]:
    """The trained network and its task."""
    model, task = _network(name)
    assert task.evaluate is not None
    known = float(quality(task.evaluate, model).mean())
    if known < KNOWN:
        raise RuntimeError(f"{name} knows only {known:.0%} of the validation split, and proves nothing: train it longer.")
    return model, task


def _network(name: str) -> tuple[nn.Module, ex.Task]:
    source, epochs, sizes = NETWORKS[name]
    if source == "fashion-mnist":
        model = common.trained(name, epochs, **sizes)
        return model, common.task(model)
    d = data.load(source, seed=common.SEED)
    model = zoo.trained(name, d, epochs=epochs, seed=common.SEED, cache=common.CACHE, sizes=sizes)
    evaluate = data.accuracy(d.validation_x, d.validation_y)
    return model, ex.Task(model, calibration=data.inputs(d.train_x[:512], 64), evaluate=evaluate, seed=common.SEED)


def recovered(name: str, model: nn.Module, task: ex.Task, epochs: int) -> nn.Module:
    """The network with 90 % zeros in every layer, trained again; kept for the next time."""
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    key = hashlib.sha256(weights).hexdigest()[:12]
    path = common.CACHE / f"{name}-90-zeros-{epochs}-epochs-{key}.safetensors"
    small, _ = ex.run(task, [ex.Prune(0.9, scope="layer")])
    if path.exists():
        small.load_state_dict(load_file(path))
        return small.eval()
    small, _ = ex.run(task, [ex.Prune(0.9, scope="layer"), ex.Recover(epochs=epochs)])
    save_file({key: value.contiguous() for key, value in small.state_dict().items()}, path)
    return small


def integers(model: nn.Module) -> Integers:
    """The codes of every coded weight."""
    found: Integers = {}
    for path, module in model.named_modules():
        if not isinstance(module, CodedTensor):
            continue
        if isinstance(module, TableTensor):
            zero = int(module.codebook.abs().argmin())
        else:
            assert isinstance(module, AffineTensor)
            zero = module.symbols // 2
        found[path.replace(".coded.", ".")] = (module.integers().to(torch.uint8).numpy(), module.symbols, zero)
    return found


def original_files(folder: Path, name: str, model: nn.Module, task: ex.Task) -> Row:
    """The float network as files: safetensors and ONNX, as they are and compressed by the general tools."""
    save_original(model, folder / "original.safetensors")
    to_onnx(model, task.sample, folder / "original.onnx")
    row: Row = {"network": name}
    for kind in ("safetensors", "onnx"):
        text = (folder / f"original.{kind}").read_bytes()
        row |= {kind: len(text), f"{kind} gzip": len(gzip.compress(text, 9))}
        if kind == "safetensors":
            row["zstd-19"] = _zstandard([text])
    return row


def entropy_bytes(codes: NDArray[Any]) -> float:
    """The order-0 entropy of one tensor, its own statistics known for nothing."""
    counts = np.bincount(codes.reshape(-1))
    counts = counts[counts > 0]
    return float((counts * np.log2(codes.size / counts)).sum()) / 8


def _nncodec(folder: Path, python: Path, codes: Integers) -> peers.Peer:
    """nncodec, which has coded the integers."""
    np.savez(folder / "codes.npz", **{key: array.astype(np.int32) - zero for key, (array, _, zero) in codes.items()})
    return peers.Peer(python, "nncodec", "integers", folder / "codes.npz")


def _our_round(codes: Integers, *, fast: bool) -> dict[str, float]:
    return _timed(
        lambda: [encode_integers(array, symbols, fast=fast) for array, symbols, _ in codes.values()],
        lambda texts: [
            decode_integers(text, array.size, symbols) for text, (array, symbols, _) in zip(texts, codes.values(), strict=True)
        ],
    )


def _constriction(codes: Integers) -> tuple[int, Callable[[], Mapping[str, float]]] | None:
    """ANS with the true frequencies, given for nothing: a check of the entropy, not a format."""
    try:
        import constriction
    except ImportError:
        print("SKIPPED constriction: not installed", flush=True)
        return None
    model, stack = constriction.stream.model, constriction.stream.stack
    tables, values = [], []
    for array, symbols, _ in codes.values():
        counts = np.bincount(array.reshape(-1), minlength=max(2, symbols)).astype(np.float64)
        tables.append(model.Categorical(counts / counts.sum(), perfect=False))
        values.append(array.reshape(-1).astype(np.int32))

    def encode() -> list[Any]:
        words = []
        for value, table in zip(values, tables, strict=True):
            coder = stack.AnsCoder()
            coder.encode_reverse(value, table)
            words.append(coder.get_compressed())
        return words

    def decode(words: Sequence[Any]) -> list[Any]:
        triples = zip(words, values, tables, strict=True)
        return [stack.AnsCoder(word).decode(table, value.size) for word, value, table in triples]

    words = encode()
    if not all(np.array_equal(back, value) for back, value in zip(decode(words), values, strict=True)):
        raise AssertionError("constriction did not give the integers back")
    return sum(word.nbytes for word in words), lambda: _timed(encode, decode)


def _zstandard(texts: Sequence[bytes]) -> int | None:
    try:
        import zstandard
    except ImportError:
        return None
    return sum(len(zstandard.ZstdCompressor(level=19).compress(text)) for text in texts)


def _timed(encode: Callable[[], Sequence[Any]], decode: Callable[[Sequence[Any]], object]) -> dict[str, float]:
    start = time.process_time()
    texts = encode()
    middle = time.process_time()
    decode(texts)
    end = time.process_time()
    return {"encode_seconds": middle - start, "decode_seconds": end - middle, "bytes": sum(memoryview(t).nbytes for t in texts)}


def _summed(parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {way: sum(part[way] for part in parts.values()) for way in ("encode_seconds", "decode_seconds")}


def _bits(tensor: torch.Tensor) -> NDArray[Any]:
    """The floats as unsigned integers of the same width: numpy has no bfloat16."""
    signed, unsigned = (torch.int32, np.uint32) if tensor.element_size() == 4 else (torch.int16, np.uint16)
    return tensor.contiguous().view(signed).numpy().view(unsigned)


def _encoded(array: NDArray[Any], word: str) -> bytes:
    """What the .nxt file does: bfloat16 goes in as uint16, the others as what they are."""
    return encode_array(array if word == "bfloat16" else array.view(word))


def _decoded(text: bytes, array: NDArray[Any], word: str) -> NDArray[Any]:
    kind = array.dtype if word == "bfloat16" else np.dtype(word)
    return decode_array(text, kind, array.shape).view(array.dtype)


def _warm_up() -> None:
    """Compiles the kernels, on codes that look like those to come."""
    rng = np.random.default_rng(common.SEED)
    for symbols, size in ((255, 300_000), (15, 300_000), (15, 3_000)):
        codes = np.clip(rng.laplace(symbols // 2, symbols / 30, (size // 100, 100)), 0, symbols - 1).astype(np.uint8)
        decode_integers(encode_integers(codes, symbols), codes.size, symbols)
    for kind in (np.float32, np.float16, np.uint16):
        values = rng.normal(size=(300, 100)).astype(np.float16).view(np.uint16).astype(kind)
        decode_array(encode_array(values), values.dtype, values.shape)


if __name__ == "__main__":
    main(sys.argv[1:] or PARTS)
