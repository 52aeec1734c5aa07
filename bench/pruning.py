"""Zeros in every layer without training: what scores by the batches and the refit keep that magnitude loses.

512 samples without labels. Quality is that of the test split, at settings that nobody chose by it (of the validation split for
the digits, which have no test apart); the distance is how far outputs moved on validation samples that no step saw, of their
variance. "normed" is the same with batch norms whose statistics are moved as far as the pruning moved them on the 512, and
"tuned" is what `Tune` makes of it by the same samples. `python bench/pruning.py resnet-20 "70 % in each layer"` runs a part,
whose rows take the place of those that are there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import common
import enxuto as ex
from enxuto import data
from enxuto.calls import evaluating, float_outputs
from enxuto.evidence.pairs import NormPlace, agree_
from enxuto.functional.likeness import Spread
from enxuto.surgery import duplicate
from file_coders import NETWORKS, network

PATTERNS: tuple[tuple[str, dict[str, object]], ...] = (
    ("50 % in each layer", {"sparsity": 0.5, "scope": "layer"}),
    ("70 % in each layer", {"sparsity": 0.7, "scope": "layer"}),
    ("90 % in each layer", {"sparsity": 0.9, "scope": "layer"}),
    ("50 % in each row", {"sparsity": 0.5, "scope": "row"}),
    ("70 % in each row", {"sparsity": 0.7, "scope": "row"}),
    ("70 % of all", {"sparsity": 0.7, "scope": "global"}),
    ("2:4", {"pattern": "2:4"}),
)
SCORES = ("magnitude", "wanda", "taylor")
TUNED = (("magnitude", False), ("wanda", True))  # with refit or without: the least and the most that is done before
CLAIM = "zeros by the data keep what zeros by magnitude lose, without training"
UNSEEN = 512  # samples of the validation split, for the distance


def main(names: list[str]) -> None:
    """Every network with every pattern of zeros, by every score, as it is and refit; or those that are named."""
    torch.set_num_threads(1)
    found = common.known("pruning")
    patterns = [each for each in PATTERNS if each[0] in names] or PATTERNS
    for name in [name for name in names if name in NETWORKS] or list(NETWORKS):
        model, task = network(name)
        judge = task.test or task.evaluate
        assert judge is not None
        whole = _mean(judge(model))
        moved = _distance(model, name)
        for zeros, sizes in patterns:
            for scores in SCORES:
                for refit in (False, True):
                    started = time.process_time()
                    small, _ = ex.Prune(scores=scores, refit=refit, **sizes)(model, task)  # type: ignore[arg-type]
                    row: dict[str, object] = {"network": name, "way": f"{zeros}, {scores}{', refit' * refit}", "zeros": zeros}
                    row |= {"scores": scores, "refit": refit, "_commit": common.commit()}
                    row |= {"original": whole, "seconds": time.process_time() - started}
                    row |= {"drop": whole - _mean(judge(small)), "distance": moved(small)}
                    norms = [path for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
                    if norms:
                        normed = duplicate(small)
                        agree_(normed, model, [NormPlace(path) for path in norms], task.calibration)
                        row |= {"drop normed": whole - _mean(judge(normed)), "distance normed": moved(normed)}
                    if (scores, refit) in TUNED:
                        started = time.process_time()
                        tuned = common.done(ex.Tune(), small, task)
                        row |= {"drop tuned": whole - _mean(judge(tuned)), "distance tuned": moved(tuned)}
                        row |= {"seconds tuned": time.process_time() - started, "given up": tuned is small}
                    found[name, str(row["way"])] = row
                    print(row, flush=True)
                    rows = sorted(found.values(), key=lambda each: list(NETWORKS).index(each["network"]))
                    common.tell("pruning", CLAIM, rows, quiet=True)


def _mean(quality: object) -> float:
    return float(torch.as_tensor(quality).float().mean())


def _distance(model: nn.Module, name: str) -> Callable[[nn.Module], float]:
    """The mean squared change of the outputs, of their variance, on samples that calibration does not hold."""
    unseen = data.inputs(data.load(NETWORKS[name][0], seed=common.SEED).validation_x[:UNSEEN], 64)
    before = _answers(model, unseen)
    spread = Spread.of(before)

    def moved(small: nn.Module) -> float:
        pairs = zip(before, _answers(small, unseen), strict=True)
        return float(torch.cat([spread.errors(*pair).flatten() for pair in pairs]).mean())

    return moved


def _answers(model: nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    with evaluating(model):
        return [float_outputs(model, batch)[0] for batch in batches]


if __name__ == "__main__":
    main(sys.argv[1:])
