"""How small a file gets that loses at most half a point: LeNet-300-100 (at least 60x) and ResNet-20 (at least 20x).

Everything is chosen on the validation split; the test split is read once for each row. `python bench/file_size.py NAME TIME`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import enxuto as ex
from enxuto.evaluation.quality import paired_change
from enxuto.judging import quality

NETWORKS: dict[str, dict[str, Any]] = {
    "lenet-300-100": {"epochs": 10, "sizes": {}, "wanted": 60, "time": "12 min"},
    "resnet-20": {"epochs": 6, "sizes": {"stem_stride": 2}, "wanted": 20, "time": "25 min"},
}


def main(name: str, time: str | None) -> None:
    """The original, zip, one-shot recipes without training, and what `compress` finds."""
    setting = NETWORKS[name]
    model = common.trained(name, setting["epochs"], **setting["sizes"])
    task = common.task(model)
    assert task.test is not None
    before = quality(task.test, model)
    with tempfile.TemporaryDirectory() as folder:
        result = ex.compress(task, target=ex.Target(max_drop=0.005), time=time or setting["time"], out=folder)
        original = result.evaluation.original.file_bytes
        rows = [
            {
                "recipe": "original (float32)",
                "bytes": original,
                "compression": 1.0,
                "test": float(before.mean()),
                "change": 0.0,
            }
        ]
        size = common.zipped(model, Path(folder) / "zip")
        rows.append(
            {
                "recipe": "zip of the weights",
                "bytes": size,
                "compression": original / size,
                "test": float(before.mean()),
                "change": 0.0,
            }
        )
        for steps in (
            [ex.Quantize(bits=8)],
            [ex.Prune(0.8, scores="magnitude"), ex.Quantize(bits=4)],
            [ex.Prune(0.8), ex.Share(bits=4, biases=8)],
        ):
            small, _ = ex.run(task, steps)
            path = Path(folder) / "baseline.nxt"
            ex.save(small, path, original=model)
            after = quality(task.test, ex.load(path, into=model))
            change, _, _ = paired_change(before, after)
            size = path.stat().st_size
            words = " + ".join(type(step).__name__ for step in steps) + ", no training"
            rows.append(
                {
                    "recipe": words,
                    "bytes": size,
                    "compression": original / size,
                    "test": float(after.mean()),
                    "change": change,
                }
            )
        found = result.evaluation
        rows.append({
            "recipe": f"compress(max_drop=0.005, time={time or setting['time']!r})",
            "bytes": found.compressed.file_bytes,
            "compression": found.compression,
            "test": found.compressed.quality,
            "change": found.quality_change,
            "interval": found.quality_change_interval,
        })  # fmt: skip
        claim = f"{name} on Fashion-MNIST: at least {setting['wanted']}x for at most half a point"
        common.tell(f"file_size_{name}", claim, rows, network=setting, result=result.document())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lenet-300-100", sys.argv[2] if len(sys.argv) > 2 else None)
