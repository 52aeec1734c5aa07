"""The clock goes by what can be exported: a float file where int8 is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto.errors import ExportError, TargetError
from enxuto.plan import speed


def test_a_network_without_an_int8_file_is_timed_in_float(tmp_path, monkeypatch):
    real = speed.export

    def export(model, path, **options):
        if options.get("precision") == "int8":
            raise ExportError("the int8 file is off by 80 %; ship float32.")
        return real(model, path, **options)

    monkeypatch.setattr(speed, "export", export)
    monkeypatch.setattr(
        speed, "latencies", lambda files, sample, rounds: {name: [{"original": 4.0}.get(name, 1.0)] for name in files}
    )
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    task = ex.Task(net, calibration=[torch.randn(4, 6)])
    assert speed.channels_for_latency(task, 0.5, tmp_path) == ()


def test_a_network_that_cannot_be_exported_is_refused_in_words(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x) if float(x.sum()) > 0 else -self.fc(x)

    task = ex.Task(Branching().eval(), calibration=[torch.randn(4, 6)])
    with pytest.raises(TargetError, match=r"latency=0\.5 of the original is asked for, and a file to be timed cannot be had"):
        speed.channels_for_latency(task, 0.5, tmp_path)
