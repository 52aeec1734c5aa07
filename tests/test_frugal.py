"""No step takes much more memory than the model: the peak of a process of its own, and what results share with originals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.toys import ResidualCnn

import enxuto as ex
from enxuto.recipe import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")

PEAKS = """
import json, sys, torch
from torch import nn
import enxuto as ex
from enxuto.recipe import run
from enxuto.evaluation.memory import give_back_free_memory, peak_bytes, reset_peak

def network(width):
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, width), nn.ReLU())
    wide = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), *head, *wide, nn.Linear(width, 10)).eval()

def peak(work):
    give_back_free_memory()
    reset_peak()
    before = peak_bytes()
    kept = work()
    return peak_bytes() - before

def tuned(model, task):
    try:
        return ex.Tune(passes=2)(model, task)
    except ex.errors.NothingChangedError:  # outputs of the two samples kept aside may come no nearer
        return None

def every(width, rows, folder):
    model, batch = network(width), torch.randn(rows, 3, 64, 64)
    task = ex.Task(model, calibration=[batch])
    model(batch[:2])
    found = {"weights": sum(p.numel() * 4 for p in model.parameters())}
    with torch.no_grad():
        found["batch"] = peak(lambda: model(batch))
    found["Task"] = peak(lambda: ex.Task(model, calibration=[batch]))
    for step in STEPS:
        found[repr(step)] = peak(lambda: step(model, task))
    pruned, _ = ex.Prune(0.7, scope="layer")(model, task)
    found["Repair"] = peak(lambda: ex.Repair()(pruned, task))
    del pruned
    found["a recipe"] = peak(lambda: run(task, STEPS[:3]))
    for bits in (4, 8):
        coded, _ = ex.Quantize(bits=bits)(model, task)
        ex.save(coded, folder + "/small.nxt", original=model)  # whatever is compiled for it
        found[f"save {bits}"] = peak(lambda: ex.save(coded, folder + "/small.nxt", original=model))
        if bits == 8:
            small = {"calibration": [batch], "precision": "int8", "max_error": 0.25}  # which layers on other ways keep
            found["int8"] = peak(lambda: ex.export(coded, folder + "/small.onnx", **small))
        found[f"Tune {bits}"] = peak(lambda: tuned(coded, task))
        del coded
        found[f"load {bits}"] = peak(lambda: ex.load(folder + "/small.nxt", into=model))
    found["fp32"] = peak(lambda: ex.export(model, folder + "/small.onnx", calibration=[batch]))
    return found

STEPS = [ex.Fold(), ex.Prune(0.8), ex.Share(bits=4), ex.Quantize(bits=4), ex.Quantize(bits=8, biases=8),
         ex.Quantize(bits=4, per="group"), ex.Quantize(bits=8, per="network", fit="absmax"), ex.Quantize(bits=8, activations=8),
         ex.PruneChannels(sparsity=0.25, scores="magnitude"), ex.PruneChannels(macs=0.5),
         ex.Factorize(rank=4, layers="5"), ex.Factorize(size=0.5, layers="5"), ex.Quantize(bits=4, rounding="gptq"),
         ex.Share(bits=3, rounding="gptq"), ex.Prune(scores="wanda", scope="row"), ex.Prune(scores="taylor", scope="layer"),
         ex.Prune(scores="wanda", layers="5", refit=True), ex.Recover(epochs=1)]
torch.set_num_threads(1)
torch.manual_seed(0)
every(16, 16, sys.argv[1])  # what is imported and compiled once
print(json.dumps(every(1024, 4, sys.argv[1])))
"""


MORE = {
    "a recipe": 1,  # what the step before gave is still there
    repr(ex.Recover(epochs=1)): 3,  # the trained weights, their gradients, the two states of AdamW, and an update of one layer
    **{f"Tune {bits}": 1 for bits in (4, 8)},  # decoded weights, those times their factors, and the gradient of one
    # the decoded weights, the same rounded another way, the float graph, and what ONNX Runtime's calibration makes of it
    "int8": 4,
}
"""How many times the weights some work takes beyond twice the weights, and of what."""


def peaks(code: str, folder: Path) -> dict[str, int]:
    """What a process of its own says last; what is freed there goes back at once, else the peak would be that of its past."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_step_takes_more_than_twice_the_model_and_a_batch(tmp_path):
    found = peaks(PEAKS, tmp_path)
    weights = found.pop("weights")
    allowed = 2 * weights + found.pop("batch") + 2**21  # and two megabytes for pieces of weights
    assert set(MORE) <= set(found)
    assert {name: peak / weights for name, peak in found.items() if peak > allowed + MORE.get(name, 0) * weights} == {}


@pytest.mark.parametrize(
    "step",
    [
        ex.Fold(),
        ex.Prune(0.5),
        ex.Prune(0.5, layers="conv1"),
        ex.Quantize(bits=4, layers="fc"),
        ex.Share(bits=3, layers="conv2"),
        ex.Factorize(rank=2, layers="conv3"),
        ex.PruneChannels(sparsity=0.5, scores="magnitude"),
        ex.Recover(epochs=1),
    ],
    ids=repr,
)
def test_what_a_step_gives_shares_no_value_with_its_model(step):
    model = ResidualCnn().eval()
    task = ex.Task(model, calibration=[torch.randn(4, 3, 8, 8)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for made in (step(model, task)[0], run(task, [step])[0]):
        for tensor in [*made.parameters(), *made.buffers()]:
            tensor.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
