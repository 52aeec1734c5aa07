"""The library is asked what it needs, a large batch is told from small ones, and what is only guessed says so."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from enxuto import memory
from enxuto.memory import inquiry, processor, workspace
from enxuto.memory.recording import allocations

aten = torch.ops.aten
FORWARD, BACKWARD = aten.convolution.default, aten.convolution_backward.default
CASES = {
    "wide": (64, 64, 3, 1, 1, 1, False),
    "image": (3, 32, 7, 2, 3, 1, False),
    "depthwise": (32, 32, 3, 1, 1, 32, False),
    "pointwise": (64, 128, 1, 1, 0, 1, False),  # torch takes another way for few samples
    "transposed": (24, 16, 3, 2, 1, 1, True),
}


def questions(case: str, samples: int, dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...]]]:
    inside, out, size, stride, padding, groups, transposed = CASES[case]
    weight = (inside, out, size, size) if transposed else (out, inside // groups, size, size)
    x, w = torch.zeros(samples, inside, 24, 24, dtype=dtype), torch.zeros(weight, dtype=dtype)
    rest = ([stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], groups)
    y = FORWARD(x, w, None, *rest)
    return [(FORWARD, (x, w, None, *rest)), (BACKWARD, (y, x, w, None, *rest, [True, True, False]))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_a_large_batch_needs_is_told_from_small_ones(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    changes = inquiry._changes
    monkeypatch.setattr(inquiry, "_changes", lambda question: ran.append(question.rows[0].size[0]) or changes(question))
    for func, args in questions(case, 44, dtype):
        with allocations() as reported:
            outputs = func(*args)
        levels = list(itertools.accumulate((change for _, change in reported), initial=0))
        found = inquiry.inside(func, args, outputs)
        if found is None:  # half precision on a processor that has none is slow, and left to the rule
            found = workspace.RULES[func.overloadpacket](args, outputs)
        assert found == pytest.approx(max(levels) - levels[-1], rel=0.01, abs=1000)
        del outputs  # whose end would be in the next report
    assert 44 not in ran


def test_what_is_too_large_is_not_run() -> None:
    with FakeTensorMode():
        x, w = torch.empty(8, 64, 4096, 4096), torch.empty(64, 64, 3, 3)
        args = (x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        assert inquiry.inside(FORWARD, args, FORWARD(*args)) is None


def test_a_guess_by_rules_of_other_processors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Conv2d(8, 24, 3), torch.randn(4, 8, 20, 20)
    assert memory.predict(model, x).unsure_bytes == 0
    monkeypatch.setattr(workspace, "inside", lambda *_: None)
    monkeypatch.setattr(processor, "kind", lambda: "aarch64")
    profile = memory.predict(model, x)
    assert 0 < profile.unsure_bytes < profile.peak_bytes
    assert "what convolution need inside is a guess" in profile.words


@pytest.mark.parametrize("kind", processor.KINDS)
def test_the_words_name_every_processor_the_rules_are_believed_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "kind", lambda: kind)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    assert processor.read_here(half_convolution=True) == (kind in processor.READ.split())


@pytest.mark.skipif(processor.kind() not in processor.KINDS, reason="the rules were read on x86")
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 20, 5), nn.Conv2d(20, 6, 5, stride=2), nn.ConvTranspose2d(16, 4, 4, 2, 1)], ids=str
)
def test_rules_stand_in_where_nothing_can_be_asked(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, layer.weight.shape[0] if isinstance(layer, nn.ConvTranspose2d) else layer.weight.shape[1], 20, 20)
    step = {"loss": lambda y, _: y.square().sum(), "optimizer": torch.optim.SGD}
    found = memory.record(layer, (x, x), **step)
    monkeypatch.setattr(workspace, "inside", lambda *_: None)
    assert memory.predict(layer, (x, x), **step).peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)


@pytest.mark.filterwarnings("ignore:TF32")  # torch's own, of the switch
@pytest.mark.parametrize("layer", [nn.Conv2d(8, 12, 3, dilation=2), nn.Conv2d(8, 12, 3), nn.ConvTranspose2d(8, 12, 3)], ids=str)
def test_the_columns_of_a_convolution_without_onednn_are_foreseen(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in half precision on a processor that has none."""
    monkeypatch.setattr(workspace, "inside", lambda *_: None)
    x = torch.randn(8, 8, 20, 20)
    step = {"loss": lambda y, _: y.square().sum(), "optimizer": torch.optim.SGD}
    with torch.backends.mkldnn.flags(enabled=False):
        for arguments, more in ((x, {}), ((x, x), step)):
            found = memory.record(layer, arguments, **more).peak_bytes
            assert memory.predict(layer, arguments, **more).peak_bytes == pytest.approx(found, rel=0.05)


def test_a_profiler_that_runs_already_is_no_hindrance() -> None:
    layer, x = nn.Conv2d(7, 9, 3), torch.randn(4, 7, 20, 20)
    with torch.autograd.profiler.profile():
        foreseen = memory.predict(layer, x)
    assert foreseen.predicted
    assert foreseen.peak_bytes == pytest.approx(memory.record(layer, x).peak_bytes, rel=0.05)


@pytest.mark.parametrize("kind", ["AVX2", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"])
def test_half_precision_is_foreseen_on_lesser_processors_too(kind: str) -> None:
    """oneDNN plays them where it is told so before torch is imported; this machine's own kind is what all other tests see."""
    mine = processor.kind()
    if mine not in processor.KINDS or processor.KINDS.index(mine) <= processor.KINDS.index(kind):
        pytest.skip(f"a machine of kind {mine} cannot play {kind}")
    file = Path(__file__).with_name("test_memory_workspace.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", str(file), "-k", "bf16"]
    told = subprocess.run(command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": kind}, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-1000:]
