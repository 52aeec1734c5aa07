"""ResNet-20 with fewer channels, not trained again: what the scores keep, and what the multiple of the widths does to the clock.

Quality is that of the validation split; latencies are those of the fp32 exports in one interleaved run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median, quantiles

import torch

import common
import enxuto as ex
from enxuto.evaluation.latency import latencies
from enxuto.macs import total_macs

EPOCHS = 6
GOALS = (0.65, 0.5, 0.35)


def main() -> None:
    """The original, and each goal with either kind of scores and three multiples."""
    torch.set_num_threads(1)
    model = common.trained("resnet-20", EPOCHS, stem_stride=2)
    task = common.task(model)
    cases = [(macs, scores, multiple) for macs in GOALS for scores in ("taylor", "magnitude") for multiple in (1, 4, 8)]
    rows: list[dict[str, object]] = []
    files: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in [None, *cases]:
            name = "original" if case is None else f"macs={case[0]}, {case[1]}, multiple_of={case[2]}"
            small = model
            if case is not None:
                small, _ = ex.PruneChannels(macs=case[0], scores=case[1], multiple_of=case[2])(model, task)
            files[name] = str(Path(folder) / f"{len(files)}.onnx")
            folded, _ = ex.Fold()(small, task)
            torch.onnx.export(folded.eval(), (task.sample[:1],), files[name], dynamo=True, verbose=False)
            assert task.evaluate is not None
            rows.append({
                "network": name,
                "macs": total_macs(small, task.sample) / total_macs(model, task.sample),
                "validation": float(torch.as_tensor(task.evaluate(small)).float().mean()),
            })  # fmt: skip
        clocks = latencies(files, task.sample[:1], rounds=30)
    base = median(clocks["original"])
    for row in rows:
        own = clocks[str(row["network"])]
        low, _, high = quantiles(own, n=4)
        row.update(time=median(own) / base, time_spread=f"{low / base:.2f}-{high / base:.2f}")
    claim = "taylor scores keep more than magnitude; widths that are no multiple of 4 or 8 cost time"
    common.tell("channel_scores", claim, rows, samples_ms=clocks)


if __name__ == "__main__":
    main()
