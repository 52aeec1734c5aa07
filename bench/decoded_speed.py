"""What a call of a coded network takes in torch beside the plain one, decoding each time or with its weights kept decoded."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

import common
import enxuto as ex
from enxuto import zoo

ROUNDS = 15


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """A network that computes much with few weights, and one that does the contrary, with a batch each."""
    torch.manual_seed(common.SEED)
    mobilenet = zoo.build("mobilenet-v2", in_channels=3, classes=1000, stem_stride=2)
    layers = [layer for _ in range(4) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return {
        "mobilenet-v2, one image of 224 pixels": (mobilenet.eval(), torch.randn(1, 3, 224, 224)),
        "four Linear(1024, 1024), 8 rows": (nn.Sequential(*layers).eval(), torch.randn(8, 1024)),
    }


def row(name: str, model: nn.Module, batch: torch.Tensor) -> dict[str, object]:
    """Medians of calls in one interleaved run."""
    task = ex.Task(model, calibration=[batch])
    coded, _ = ex.run(task, [ex.Quantize(bits=8)])
    kept, _ = ex.run(task, [ex.Quantize(bits=8)])
    held = ex.keep_decoded_(kept, "200 MB")
    cases = {"plain": model, "coded": coded, "kept": kept}
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    with torch.no_grad():
        same = torch.equal(coded(batch), kept(batch))
        for _ in range(ROUNDS):
            for case, network in cases.items():
                start = time.perf_counter()
                network(batch)
                seconds[case].append(time.perf_counter() - start)
    plain, *others = (median(times) for times in seconds.values())
    return {
        "network": name,
        "plain_ms": 1e3 * plain,
        "coded": others[0] / plain,
        "kept": others[1] / plain,
        "kept MB": sum(held.values()) / 1e6,
        "same outputs": "yes" if same else "no",
    }


def main() -> None:
    """Prints the table and writes bench/results/decoded_speed.json."""
    torch.set_num_threads(1)
    rows = [row(name, *network) for name, network in networks().items()]
    common.tell("decoded_speed", "A coded network with its weights kept decoded takes the plain one's time in torch", rows)


if __name__ == "__main__":
    main()
