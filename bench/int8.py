"""Weights and inputs in 8 bits, in ONNX Runtime: our export beside the runtime's own quantizer on the same float file.

Both see the same 512 samples without labels; neither is trained. Quality is that of the test split (of the validation split for
the digits, which have no test apart), at settings that nobody chose by it; the distance is how far outputs moved on it, squared,
of their variance. "here" is what this processor computes; "exact" is the same file with the runtime's optimisations off, where
integers are computed in float: what a processor with an int8 dot product gives, and one without it only where no sum of two
products overflows 16 bits. OpenVINO with nncf takes part where both are installed.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

import common
import enxuto as ex
from enxuto.batches import arguments
from enxuto.calls import evaluating, float_outputs
from enxuto.evaluation.latency import latencies
from enxuto.evaluation.onnxmodel import OnnxModel, feeds
from enxuto.evaluation.operators import integer_operators
from enxuto.functional.likeness import Spread
from file_coders import NETWORKS, network

METHODS = ("MinMax", "Percentile", "Entropy")
ROUNDS = 40


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
    if any(importlib.util.find_spec(name) is None for name in ("openvino", "nncf")):
        print("SKIPPED openvino with nncf: not installed", flush=True)
    rows: list[dict[str, object]] = []
    clocks: dict[str, object] = {}
    for name in names or list(NETWORKS):
        with tempfile.TemporaryDirectory() as folder:
            model, task = network(name)
            files = written(Path(folder), model, task)
            times = latencies(files, task.sample, rounds=ROUNDS)
            clocks[name] = times
            for kind, path in files.items():
                rows.append(measured(name, kind, path, model, task) | speed(times, kind))
                print(rows[-1], flush=True)
    claim = "int8 in ONNX Runtime, no training: quality at least that of the runtime's own quantizer, and no slower"
    common.tell("int8", claim, rows, samples_ms=clocks)


def written(folder: Path, model: nn.Module, task: ex.Task) -> Mapping[str, Path]:
    """The files that are compared, by name."""
    batches = list(task.calibration)
    files = {"float32": folder / "float.onnx", "enxuto": folder / "enxuto.onnx"}
    ex.export(model, files["float32"], calibration=batches)
    ex.export(model, files["enxuto"], calibration=batches, precision="int8")
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
    return files


def measured(name: str, kind: str, path: Path, model: nn.Module, task: ex.Task) -> dict[str, object]:
    """Quality, distance and size of one file."""
    judge = task.test or task.evaluate
    assert judge is not None
    found: dict[str, object] = {"network": name, "file": kind, "bytes": path.stat().st_size}
    here, exact = OnnxModel(path, threads=1), OnnxModel(path, threads=1)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    exact.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for where, file in {"here": here, "exact": exact}.items():
        found[f"quality {where}"] = float(torch.as_tensor(judge(file)).float().mean())
        found[f"distance {where}"] = distance(model, file, judge)
    kinds = integer_operators(path)
    return found | {"on integers": sum(kinds.integer.values()), "in float": sum(kinds.floating.values())}


def distance(model: nn.Module, file: nn.Module, judge: Any) -> float:
    """The mean squared change of the outputs on the judge's own inputs, of their variance."""
    batches = list(ex.data.inputs(judge.x, 500))[:4]
    with evaluating(model):
        before, after = ([float_outputs(each, batch)[0] for batch in batches] for each in (model, file))
    spread = Spread.of(before)
    return float(torch.cat([spread.errors(*pair).flatten() for pair in zip(before, after, strict=True)]).mean())


def speed(times: Mapping[str, list[float]], kind: str) -> dict[str, object]:
    """How many times as fast as the float file: the ratio of medians, and the middle half of the ratios round by round."""
    ratios = np.array(times["float32"]) / np.array(times[kind])
    low, _, high = quantiles(ratios.tolist(), n=4)
    return {"speed": median(times["float32"]) / median(times[kind]), "from": low, "to": high}


if __name__ == "__main__":
    main(sys.argv[1:])
