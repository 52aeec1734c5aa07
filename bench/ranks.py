"""Thin layers without training, at equal weights: what the data keep that the weights' own singular values lose.

512 samples without labels. Quality is that of the test split, at settings that nobody chose by it (of the validation split for
the digits, which have no test apart); the distance is how far outputs moved on those samples, squared, of their variance. Each
network by plain SVD and SVD by the data, with convolutions by Tucker-2 and CP and without by Kronecker sums either way, to 75, 50
and 25 % of the weights of the layers that can be thin: with the same energy in every layer (the least energy that is small
enough), or shared out. And what no option does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import common
import enxuto as ex
from enxuto.errors import Error
from enxuto.forms import WHOLE, Form
from enxuto.ranks import Least, SquaresOf, offers, shapes
from enxuto.sites import Site
from enxuto.thin import thinnable
from file_coders import NETWORKS, network

SIZES = (0.75, 0.5, 0.25)
FORMS: tuple[Form, ...] = ("svd", "tucker", "cp", "auto")
MATRICES: tuple[Form, ...] = ("svd", "kronecker")
LEAST: tuple[Least, ...] = ("weights", "outputs")
HALVINGS = 20  # of the range of energies


def main(names: list[str]) -> None:
    """Every network at every size, by every way to choose."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in names or list(NETWORKS):
        model, task = network(name)
        whole = _judged(model, task)
        convolutions = any(isinstance(module, nn.Conv2d) and module.groups == 1 for module in model.modules())
        energies = {least: _energies(model, task, least) for least in LEAST}
        ways: list[tuple[str, str, ex.Factorize]] = [("nothing", "", ex.Factorize())]
        for size in SIZES:
            for least in LEAST:
                asked = f"{size:.0%}"
                for form in FORMS if convolutions else MATRICES:
                    ways.append((asked, f"{form}, {least}", ex.Factorize(size=size, form=form, least=least)))
                if energies[least][size]:
                    alike = ex.Factorize(energy=energies[least][size], form="svd", least=least)
                    ways.append((asked, f"same energy, svd, {least}", alike))
        for asked, way, step in ways:
            rows.append({"network": name, "asked": asked, "way": way, **_row(step, model, task, whole)})
            print(rows[-1], flush=True)
    common.tell("ranks", "ranks by the data keep what plain SVD loses, at equal weights and without training", rows)


def _row(step: ex.Factorize, model: nn.Module, task: ex.Task, whole: float) -> dict[str, object]:
    """Weights left, points lost, squared distance and seconds of one step; why, where it is refused."""
    started = time.process_time()
    try:
        small, record = step(model, task)
    except Error as error:
        return {"original": whole, "_refused": str(error)}
    seconds = time.process_time() - started
    left, moved = record.figures["weights_left"], record.figures["output_error"]
    return {
        "original": whole,
        "left": left,
        "drop": whole - _judged(small, task),
        "distance": moved**2,
        "seconds": seconds,
        "_layers": {change.path: change.what for change in record.changes},
    }


def _energies(model: nn.Module, task: ex.Task, least: Least) -> dict[float, float]:
    """For each size the most energy that plain steps of one energy for all layers can keep, with so many weights."""
    layers, _ = thinnable(model, "*", task.sample)
    every = {path: m for path, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    sizes = shapes(model, every, task.sample)
    weights = {path: Site(path, "weight", layer) for path, layer in layers.items()}
    square = SquaresOf(model, task, [*weights.values()], least)
    curves = {path: offers(weight.read(), sizes[path], "svd", square(weight)) for path, weight in weights.items()}
    curves = {path: [each for each in curve if not sizes[path].grows(each.ranks)] for path, curve in curves.items()}
    whole = sum(shape.weights(WHOLE) for shape in sizes.values())

    def left(energy: float) -> float:
        saved = sum(
            sizes[path].weights(WHOLE) - min(sizes[path].weights(each.ranks) for each in curve if each.lost <= 1 - energy)
            for path, curve in curves.items()
        )
        return 1 - saved / whole

    return {size: _bisected(lambda energy, size=size: left(energy) <= size) for size in SIZES}  # type: ignore[misc]


def _bisected(fits: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _judged(model: nn.Module, task: ex.Task) -> float:
    judge = task.test or task.evaluate
    assert judge is not None
    return float(torch.as_tensor(judge(model)).float().mean())


if __name__ == "__main__":
    main(sys.argv[1:])
