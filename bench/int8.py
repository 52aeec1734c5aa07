"""Weights and inputs in 8 bits, in ONNX Runtime: our exports beside the runtime's own quantizer, and nncf in OpenVINO.

All see the same 512 samples without labels and the same float file; nothing is trained. Quality is that of the test split (of
the validation split for the digits, which have no test apart), at settings that nobody chose by it. Agreement with the float
network and the distance (how far outputs moved, squared, of their variance) are of 2,000 of its samples; "exact" is the same file
with the runtime's optimisations off, where integers are computed in float: what a processor with an int8 dot product gives, and
one without it only where no sum of two products overflows 16 bits. Times are CPU milliseconds of one thread, one sample, round by
round in turns; "speed" is the ratio to the float file of ONNX Runtime, with the middle half of the rounds. "Only it" and "only
ours" count the samples that one of a file and our int8 file knows and the other does not, and "chance" is how likely so uneven a
pair is where neither is better (McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
percentages", exact).
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from scipy.stats import binomtest
from torch import Tensor, nn

import common
import enxuto as ex
import peers
from enxuto.batches import arguments
from enxuto.calls import evaluating, float_outputs
from enxuto.evaluation.onnxmodel import OnnxModel, feeds, first_row_arrays
from enxuto.evaluation.operators import integer_operators
from enxuto.evaluation.session import open_session
from enxuto.exporters import export
from enxuto.exporters.int8 import quantize_onnx
from enxuto.functional.likeness import Spread
from file_coders import NETWORKS, network

OURS: Mapping[str, Mapping[str, object]] = {
    "enxuto int8": {"precision": "int8"},
    "enxuto int8-dynamic": {"precision": "int8-dynamic"},
    "enxuto int4": {"precision": "int4"},
}
CLAIM = "int8 in ONNX Runtime, no training: quality at least that of the best peer, and no slower"
METHODS = ("MinMax", "Percentile", "Entropy")
ROUNDS = 40
SHORTEST_MS = 2.0  # a sample is the mean of so many calls


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration batches as the runtime's quantizer wants them."""

    def __init__(self, path: Path, batches: list[Tensor]) -> None:
        names = [item.name for item in onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()]
        self.arrays = iter([feeds(names, *arguments(batch)) for batch in batches])

    def get_next(self) -> Any:
        """The next batch; None at the end."""
        return next(self.arrays, None)


def main(names: list[str]) -> None:
    """Every network, ours and theirs."""
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    nncf = peers.interpreter("nncf")
    rows, clocks = kept(names)
    for name in names or NETWORKS:
        model, task = network(name)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            files, notes = written(Path(folder), model, task)
            others = {}
            if nncf is not None:
                others["openvino, nncf"] = stack.enter_context(Served(nncf, Path(folder), task))
            measures = {kind: measured(model, path, task) for kind, path in files.items()}
            measures |= {kind: judged(model, served, "here", task) | {"bytes": served.size} for kind, served in others.items()}
            paired(measures)
            clocks[name] = times = raced(files, task, list(others.values()))
            for kind in times:
                row = {"network": name, "file": kind, **measures.get(kind, {}), **speed(times, kind)}
                rows.append(row | ({"notes": notes[kind]} if notes.get(kind) else {}))
                print(rows[-1], flush=True)
        common.tell(
            "int8", CLAIM, [{key: row[key] for key in row if key != "notes"} for row in rows], samples_ms=clocks, told=rows
        )


def kept(names: Sequence[str]) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Rows and samples of the last run, of networks that are not asked for now."""
    path = common.RESULTS / "int8.json"
    last = json.loads(path.read_text()) if names and path.exists() else {}
    rows = [row for row in last.get("told", ()) if row["network"] not in names]
    return rows, {name: each for name, each in last.get("samples_ms", {}).items() if name not in names}


def written(folder: Path, model: nn.Module, task: ex.Task) -> tuple[Mapping[str, Path], Mapping[str, Sequence[str]]]:
    """The files that are compared, by name, and what our exports say of theirs."""
    batches = list(task.calibration)
    files = {"float32": folder / "float.onnx", **{kind: folder / f"{kind}.onnx" for kind in (*OURS, "enxuto min-max, nearest")}}
    notes = {"float32": export(model, files["float32"], calibration=batches).notes}
    for kind, options in OURS.items():
        notes[kind] = export(model, files[kind], calibration=batches, **options).notes  # type: ignore[arg-type]
    quantize_onnx(files["float32"], files["enxuto min-max, nearest"], batches)
    for method in METHODS:
        for bits in (8, 7) if method == "MinMax" else (8,):
            kind = f"onnxruntime {method}" + ("" if bits == 8 else ", 7 bits")
            files[kind] = folder / f"{kind}.onnx"
            quantize_static(
                files["float32"],
                files[kind],
                Reader(files["float32"], batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )
    return files, notes


def measured(model: nn.Module, path: Path, task: ex.Task) -> dict[str, object]:
    """Quality, distance and size of one file."""
    here, exact = OnnxModel(path, threads=1), OnnxModel(path, threads=1)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    exact.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = integer_operators(path)
    counts = {"on integers": sum(kinds.integer.values()), "in float": sum(kinds.floating.values())}
    found = judged(model, here, "here", task) | judged(model, exact, "exact", task, whole=False)
    return {"bytes": path.stat().st_size} | found | counts


def judged(model: nn.Module, file: nn.Module, where: str, task: ex.Task, *, whole: bool = True) -> dict[str, object]:
    """Quality on the whole split, agreement with the network and distance from it on some samples."""
    judge: Any = task.test or task.evaluate
    found: dict[str, object] = {}
    if whole:
        found["samples"] = values = torch.as_tensor(judge(file)).float()
        found[f"quality {where}"] = float(values.mean())
    batches = list(ex.data.inputs(judge.x, 500))[:4]
    with evaluating(model):
        before, after = ([float_outputs(each, batch)[0] for batch in batches] for each in (model, file))
    spread = Spread.of(before)
    far = torch.cat([spread.errors(*pair).flatten() for pair in zip(before, after, strict=True)]).mean()
    same = torch.cat([one.argmax(1) == other.argmax(1) for one, other in zip(before, after, strict=True)])
    return found | {f"agreement {where}": float(same.float().mean()), f"distance {where}": float(far)}


def paired(measures: Mapping[str, dict[str, Any]]) -> None:
    """Puts what tells each file from our int8 file, sample by sample, in the place of what each sample came to."""
    ours = measures["enxuto int8"]["samples"]
    for found in measures.values():
        differs = found.pop("samples") - ours
        better, worse = int((differs > 0).sum()), int((differs < 0).sum())
        chance = binomtest(better, better + worse).pvalue if better + worse else 1.0
        found |= {"only it": better, "only ours": worse, "chance": float(chance)}


class Served(nn.Module):
    """A network that runs in OpenVINO, quantized by nncf; called as if it were here."""

    def __init__(self, python: Path, folder: Path, task: ex.Task) -> None:
        super().__init__()
        self.folder = folder
        np.savez(folder / "calibration.npz", *[batch.numpy() for batch in task.calibration])
        np.savez(folder / "sample.npz", task.sample[:1].numpy())
        given = (folder / "float.onnx", folder / "calibration.npz", folder / "sample.npz", folder)
        self.peer = peers.Peer(python, "nncf", *given)
        self.size = self.peer.first["bytes"]

    def forward(self, x: Tensor) -> Tensor:
        """The outputs for a batch."""
        files = {"inputs": str(self.folder / "in.npz"), "outputs": str(self.folder / "out.npz")}
        np.savez(files["inputs"], x.numpy())
        self.peer.ask(dict(files))
        with np.load(files["outputs"]) as found:
            return torch.from_numpy(found["arr_0"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *given: object) -> None:
        self.peer.__exit__(*given)


def raced(files: Mapping[str, Path], task: ex.Task, served: Sequence[Served]) -> dict[str, list[float]]:
    """CPU milliseconds of a call of each, in turns."""
    calls = {name: _call(path, task) for name, path in files.items()}
    repeats = {name: max(1, round(SHORTEST_MS / min(_clocked(call, 1) for _ in range(10)) + 0.5)) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(_clocked(call, repeats[name]))
        for each in served:
            for name, value in each.peer.round().items():
                times.setdefault(name, []).append(value)
    return times


def _call(path: Path, task: ex.Task) -> Callable[[], Any]:
    session, given = open_session(path, threads=1), first_row_arrays(path, task.sample)
    return lambda: session.run(None, given)


def _clocked(call: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return 1e3 * (time.process_time() - start) / repeats


def speed(times: Mapping[str, list[float]], kind: str) -> dict[str, object]:
    """How many times as fast as the float file: the ratio of medians, and the middle half of the ratios round by round."""
    ratios = np.array(times["float32"]) / np.array(times[kind])
    low, _, high = quantiles(ratios.tolist(), n=4)
    return {"ms": median(times[kind]), "speed": median(times["float32"]) / median(times[kind]), "from": low, "to": high}


if __name__ == "__main__":
    main(sys.argv[1:])
