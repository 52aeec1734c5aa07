"""Factors between channels before weights and inputs are rounded: points lost with and without Equalize, no labels, no training.

Samples are 512 calibration inputs without labels; quality is that of the validation split. "wild" is the same network with the
channels of every link multiplied by 2 ** U(-5, 5), exactly: what it computes is the same, what rounding makes of it is not.
"outliers" has one channel in sixteen of what norms or layers give 64 times as large. Networks with batch norms are folded first,
and not. "best" is the default; "weights" is data-free equalization as published; what does not help on the samples is taken back
in both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping

import torch
from torch import nn

import common
import enxuto as ex
from enxuto.errors import NothingChangedError
from enxuto.groups.links import find_links, scale_
from enxuto.surgery import duplicate
from file_coders import network
from rounding import _distance, _mean

NAMES = ("lenet-5", "resnet-8", "mobilenet-v2", "transformer")
FOLDED = ("resnet-8", "mobilenet-v2")
GRIDS = ((8, "tensor"), (6, "tensor"), (4, "tensor"), (4, "channel"))
ENDS = ((8, "tensor"), (4, "channel"))  # of networks whose channels were made wild
WAYS: Mapping[str, dict[str, object]] = {
    "best": {},
    "weights": {"by": "weights"},
}


def main(names: list[str]) -> None:
    """Every network as it is, wild and with outliers, on every grid."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in names or NAMES:
        model, task = network(name)
        for kind, subject in subjects(name, model, task):
            for bits, per in ENDS if "wild" in kind or kind == "outliers" else GRIDS:
                rows.append({"network": name, "channels": kind, "bits": bits, "per": per, **compared(subject, task, bits, per)})
                print(rows[-1], flush=True)
    claim = "outputs stay, and 8, 6 and 4 bits lose less: points lost of the validation split, and how far outputs move"
    common.tell("equalize", claim, rows)


def subjects(name: str, model: nn.Module, task: ex.Task) -> Iterator[tuple[str, nn.Module]]:
    """The network in its forms, which all compute the same."""
    yield "as trained", model
    if name in FOLDED:
        folded, _ = ex.Fold()(model, task)
        yield "folded", folded
        yield "folded, wild", scaled(folded, task, "wild")
    else:
        yield "wild", scaled(model, task, "wild")
        yield "outliers", scaled(model, task, "outliers")


def scaled(model: nn.Module, task: ex.Task, kind: str) -> nn.Module:
    """A copy with factors in the channels of all its links."""
    made = duplicate(model)
    chance = torch.Generator().manual_seed(common.SEED)
    for link in find_links(made, task.sample)[0]:
        if kind == "wild":
            factors = 2 ** (torch.rand(link.size, generator=chance, dtype=torch.float64) * 10 - 5)
        else:
            factors = torch.ones(link.size, dtype=torch.float64)
            factors[torch.randperm(link.size, generator=chance)[: max(1, link.size // 16)]] = 64.0
        scale_(made, link, factors)
    return made


def compared(model: nn.Module, task: ex.Task, bits: int, per: str) -> dict[str, object]:
    """Points lost and distance, rounded as it is and after each way to equalize."""
    judge = task.evaluate
    assert judge is not None
    whole = _mean(judge(model))
    row: dict[str, object] = {"original": whole}
    for way, options in {"": None, **WAYS}.items():
        started = time.process_time()
        subject = model if options is None else equalized(model, task, {"bits": bits, "per": per, **options})
        row |= {f"seconds {way}": time.process_time() - started} if way else {}
        small, _ = ex.Quantize(bits=bits, per=per, activations=8)(subject, task)  # type: ignore[arg-type]
        row[f"drop {way}".strip()] = whole - _mean(judge(small))
        row[f"distance {way}".strip()] = _distance(model, small, task)
    return row


def equalized(model: nn.Module, task: ex.Task, options: Mapping[str, object]) -> nn.Module:
    """The network after Equalize, or as it was where that finds nothing that helps."""
    try:
        return ex.Equalize(**options)(model, task)[0]  # type: ignore[arg-type]
    except NothingChangedError:
        return model


if __name__ == "__main__":
    main(sys.argv[1:])
