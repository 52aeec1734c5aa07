"""The smallest file at half a point without training: 512 samples without labels, against nncodec's best of its options.

Every way has a knob from fine to coarse; halving finds the coarsest place that loses at most half a point of the validation
split, and two beyond it are looked at as well. Test quality is read once, of the best. nncodec: each quantization parameter, with
and without dependent quantization, `opt_qp`, and two for what are no weights. Plain grids: 8 to 3 bits, the nearest values.
The digits of MobileNetV2 have no test apart.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import common
import enxuto as ex
import peers
from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.plan.history import Trial
from enxuto.plan.search import fold, next_of
from enxuto.plan.untrained import Wish, folded_or_not, untrained
from enxuto.recipe import line
from file_coders import NETWORKS, network

NAME, SEARCHED = "file_untrained", "thin layers, zeros, tolerance, tuned"
CLAIM = "without training and labels: the smallest file at half a point of the validation"
MAX_DROP = 0.005
TOLERANCES = tuple(float(f"{2e-5 * 1.1**k:.3g}") for k in range(56))
BEYOND = 2
PARAMETERS = tuple(range(-40, -7))
Tried = Callable[[int], tuple[dict[str, Any], nn.Module]]


def main(names: list[str]) -> None:
    """Every network of the zoo, or those named, whose rows take the place of those that are there; other names are how the ways
    to measure begin: "nncodec", "tolerance, gptq", "thin layers" for what `compress` begins with."""
    torch.set_num_threads(1)
    found = common.known(NAME)
    ways = tuple(name for name in names if name not in NETWORKS)
    for name in [name for name in names if name in NETWORKS] or list(NETWORKS):
        model, task = network(name)
        with tempfile.TemporaryDirectory() as folder:
            for way, best in _bests(model, task, Path(folder), ways or ("",)):
                found[name, way] = {"network": name, "way": way, **best, "_commit": common.commit()}
                print(found[name, way], flush=True)
                common.tell(NAME, CLAIM, sorted(found.values(), key=lambda row: list(NETWORKS).index(row["network"])), quiet=True)


def _bests(model: nn.Module, task: ex.Task, folder: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for way, places, tried in _ways(model, task, folder):
        if way.startswith(wanted):
            started = time.process_time()
            yield way, {**_smallest(model, task, places, tried), "seconds": time.process_time() - started}
    if SEARCHED.startswith(wanted):
        started = time.process_time()
        yield SEARCHED, {**_searched(model, task, folder), "seconds": time.process_time() - started}


def _ways(model: nn.Module, task: ex.Task, folder: Path) -> Iterator[tuple[str, int, Tried]]:
    """Each way: its name, how many places its knob has, and what a place gives."""
    for rounding, biases in itertools.product(("gptq", "nearest"), (8, None)):
        recipes = [ex.Quantize(tolerance=each, rounding=rounding, biases=biases) for each in TOLERANCES]  # type: ignore[arg-type]
        yield f"tolerance, {rounding}, biases {biases}", len(recipes), _file(model, task, recipes, folder)
    for per, fit in (("channel", "mse"), ("tensor", "absmax"), ("network", "absmax")):
        recipes = [ex.Quantize(bits, per=per, fit=fit, biases=8) for bits in range(8, 2, -1)]  # type: ignore[arg-type]
        yield f"bits, {per}", len(recipes), _file(model, task, recipes, folder)
    python = peers.interpreter("nncodec")
    if python is None:
        return
    floats = {key: value.numpy() for key, value in model.state_dict().items() if value.is_floating_point()}
    np.savez(folder / "floats.npz", **floats)
    with peers.Peer(python, "nncodec", "settings", folder / "floats.npz", folder / "back.npz") as peer:
        for dependent, optimised, others in itertools.product((False, True), (False, True), (-75, -45)):
            fixed = {"use_dq": dependent, "opt_qp": optimised, "nonweight_qp": others}
            words = "nncodec" + ", dependent" * dependent + ", opt_qp" * optimised + f", others at {others}"
            yield words, len(PARAMETERS), _nncodec(peer, model, task, fixed, folder)


def _file(model: nn.Module, task: ex.Task, recipes: Sequence[ex.Step], folder: Path) -> Tried:
    path = folder / "small.nxt"

    def tried(place: int) -> tuple[dict[str, Any], nn.Module]:
        small, _ = ex.run(ex.Task(model, calibration=task.calibration, seed=task.seed), [recipes[place]])
        ex.save(small, path, original=model)
        return {"setting": line(recipes[place]), "bytes": path.stat().st_size}, ex.load(path, into=model)

    return tried


def _nncodec(peer: peers.Peer, model: nn.Module, task: ex.Task, fixed: dict[str, object], folder: Path) -> Tried:
    def tried(place: int) -> tuple[dict[str, Any], nn.Module]:
        told = peer.ask({"qp": PARAMETERS[place], **fixed})
        with np.load(folder / "back.npz") as back:
            values = {key: torch.from_numpy(back[key]) for key in back.files}
        other, _ = ex.run(task, [])
        state = model.state_dict()
        other.load_state_dict({key: values.get(key, value).reshape(value.shape) for key, value in state.items()})
        return {"setting": f"qp {PARAMETERS[place]}", "bytes": told["bytes"]}, other

    return tried


def _smallest(model: nn.Module, task: ex.Task, places: int, tried: Tried) -> dict[str, Any]:
    """The smallest file that loses at most half a point."""
    before = _quality(task, model)
    passed: list[tuple[dict[str, Any], nn.Module]] = []

    def passes(place: int) -> bool:
        row, small = tried(place)
        row["drop"] = before - _quality(task, small)
        if row["drop"] <= MAX_DROP:
            passed.append((row, small))
        return bool(row["drop"] <= MAX_DROP)

    low, high = 0, places
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if passes(middle) else (low, middle)
    for place in range(low + 1, min(places, low + 1 + BEYOND)):
        passes(place)
    return _best(model, task, passed)


def _searched(model: nn.Module, task: ex.Task, folder: Path) -> dict[str, Any]:
    """The smallest file among the recipes without training that `compress` begins with."""
    bare, path, before = ex.Task(model, calibration=task.calibration, seed=task.seed), folder / "small.nxt", _quality(task, model)
    checkpoints = FolderCheckpoints(folder)
    recipes = untrained(
        folded_or_not((), fold(task)), Wish(_passes, _passes, lambda trial: trial.file_bytes, lambda trial: False)
    )
    passed: list[tuple[dict[str, Any], nn.Module]] = []
    trial = None
    while (recipe := next_of(recipes, trial)) is not None:
        try:
            small, _ = ex.run(bare, recipe, checkpoints=checkpoints, strict=True)
        except (ex.errors.NothingChangedError, ex.errors.RangeError):
            trial = None
            continue
        ex.save(small, path, original=model)
        small, size = ex.load(path, into=model), path.stat().st_size
        trial = Trial(0.0, "", size, 0.0, False, "", before - _quality(task, small))
        if _passes(trial):
            passed.append(({"setting": ", ".join(map(line, recipe)), "bytes": size, "drop": trial.drop}, small))
    return _best(model, task, passed)


def _passes(trial: Trial) -> bool:
    return trial.drop <= MAX_DROP


def _best(model: nn.Module, task: ex.Task, passed: Sequence[tuple[dict[str, Any], nn.Module]]) -> dict[str, Any]:
    """The smallest, with what it loses on the test."""
    if not passed:
        return {"setting": "none loses so little", "bytes": None, "drop": None, "test drop": None}
    row, small = min(passed, key=lambda each: each[0]["bytes"])
    return {**row, "test drop": None if task.test is None else _mean(task.test, model) - _mean(task.test, small)}


def _quality(task: ex.Task, model: nn.Module) -> float:
    assert task.evaluate is not None
    return _mean(task.evaluate, model)


def _mean(judge: Callable[[nn.Module], object], model: nn.Module) -> float:
    return float(torch.as_tensor(judge(model)).float().mean())


if __name__ == "__main__":
    main(sys.argv[1:])
