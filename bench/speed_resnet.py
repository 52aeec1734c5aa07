"""ResNet-20, channels pruned to half the MACs and recovered: at least 1.4x as fast in ONNX Runtime, at most a point lost.

The peer, torch-pruning at the same MACs, is timed in the same interleaved run (fp32; speed needs no training).
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from statistics import median

import torch

import common
import enxuto as ex
from enxuto.evaluation.latency import latencies
from enxuto.macs import count_macs

EPOCHS, RECOVER = 6, 4


def main() -> None:
    """Original, the peer, and our fp32 and int8 exports."""
    model = common.trained("resnet-20", EPOCHS, stem_stride=2)
    task = common.task(model)
    steps = [
        ex.PruneChannels(macs=0.5),
        ex.Recover(epochs=RECOVER),
        ex.Fold(),
        ex.Quantize(bits=7, activations=8),
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = ex.compress(task, steps=steps, out=folder)
        peer = Path(folder) / "peer.onnx"
        peer_macs = _peer(model, task, peer)
        files = {"original": Path(folder) / "original.onnx", "torch-pruning": peer, **result.exports}
        clocks = latencies(files, task.sample[:1], rounds=60)
    found = result.evaluation
    base = median(clocks["original"])
    rows = [
        {"network": "original fp32", "macs": found.original.macs, "speedup": 1.0, "test": found.original.quality},
        {
            "network": "torch-pruning fp32 (not trained)",
            "macs": peer_macs,
            "speedup": base / median(clocks["torch-pruning"]),
        },
    ]
    for export in found.exports:
        rows.append({
            "network": f"enxuto {export.precision}",
            "macs": found.compressed.macs,
            "speedup": base / median(clocks[export.precision]),
            "test": export.quality,
            "change": export.quality_change,
            "integer": export.integer_operators,
            "float": export.float_operators,
        })  # fmt: skip
    claim = "ResNet-20 at half the MACs: fastest export at least 1.4x the original, at most one point lost"
    common.tell("speed_resnet", claim, rows, samples_ms=clocks, result=result.document())


def _peer(model: torch.nn.Module, task: ex.Task, path: Path) -> int:
    import torch_pruning as tp

    pruned = copy.deepcopy(model)
    sample = task.sample[:1]
    for ratio in (0.2, 0.25, 0.3, 0.35, 0.4):
        pruned = copy.deepcopy(model)
        ignored = [m for m in pruned.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 10]
        pruner = tp.pruner.MagnitudePruner(
            pruned,
            sample,
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=ignored,
            round_to=4,
        )
        pruner.step()
        if sum(count_macs(pruned, sample).values()) <= 0.5 * sum(count_macs(model, sample).values()):
            break
    ex.export(pruned, path, calibration=task.calibration)
    return sum(count_macs(pruned, sample).values())


if __name__ == "__main__":
    main()
