"""What the process is like that tests branch off: it has imported what is slow to import, and written and read a small file."""

import tempfile
from pathlib import Path

import lightning_fabric  # noqa: F401
import onnxruntime.quantization  # noqa: F401
import pytest  # noqa: F401
import torch
import torch._dynamo
from torch import nn

import enxuto as ex

torch.set_num_threads(1)
_model = nn.Sequential(nn.Linear(4, 3))
_coded, _ = ex.run(ex.Task(_model, calibration=[torch.zeros(2, 4)]), [ex.Prune(0.5), ex.Share(bits=3)])
with tempfile.TemporaryDirectory() as _folder:
    ex.save(_coded, Path(_folder) / "small.nxt", original=_model)
    ex.load(Path(_folder) / "small.nxt", into=_model)
