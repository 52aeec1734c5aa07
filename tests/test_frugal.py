"""No step takes much more memory than the model: the peak of a process of its own, and what results share with originals."""

from __future__ import annotations

import json
import subprocess
import sys

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
    found["a recipe"] = peak(lambda: run(task, STEPS[:3]))
    found["cutting"] = peak(lambda: ex.PruneChannels(sparsity=0.25, scores="magnitude")(model, task))
    for bits in (4, 8):
        coded, _ = ex.Quantize(bits=bits)(model, task)
        found[f"save {bits}"] = peak(lambda: ex.save(coded, folder + "/small.nxt", original=model))
        del coded
        found[f"load {bits}"] = peak(lambda: ex.load(folder + "/small.nxt", into=model))
    return found

STEPS = [ex.Fold(), ex.Prune(0.8), ex.Share(bits=4), ex.Share(bits=8), ex.Quantize(bits=4), ex.Quantize(bits=8, biases=8),
         ex.Quantize(bits=4, per="group"), ex.Quantize(bits=8, per="network", fit="absmax"), ex.Quantize(bits=8, activations=8)]
torch.set_num_threads(1)
every(16, 2, sys.argv[1])  # what is imported and compiled once
print(json.dumps(every(2048, 16, sys.argv[1])))
"""


def test_no_step_takes_more_than_twice_the_model_and_a_batch(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    weights = found.pop("weights")
    allowed = 2 * weights + found.pop("batch") + 2**23  # and eight megabytes for pieces of weights
    found["a recipe"] -= weights  # what the step before gave is still there
    found["cutting"] -= 3 * weights  # cuts are rehearsed on weights in double precision, of which some have zeros in one run
    assert {name: peak / allowed for name, peak in found.items() if peak > allowed} == {}


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
