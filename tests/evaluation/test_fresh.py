"""A function in a fresh process: results, errors, what cannot travel, death and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from enxuto.errors import TargetError
from enxuto.evaluation.fresh import FreshProcessError, UnpicklableError, _pickled, in_fresh_process


def test_a_closure_runs_in_another_process_and_its_result_comes_back():
    here = os.getpid()
    there, value = in_fresh_process(lambda number: (os.getpid(), number + here), 1)
    assert there != here
    assert value == here + 1


def fails(error: Exception) -> None:
    print("words on the way")
    raise error


class OwnError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_comes_back_as_itself_with_the_other_traceback():
    with pytest.raises(TargetError, match="a goal") as caught:
        in_fresh_process(fails, TargetError("a goal"))
    assert "in fails" in caught.value.__notes__[0]


def test_an_error_that_cannot_travel_keeps_its_name_and_words():
    with pytest.raises(FreshProcessError, match="OwnError in a fresh process: 1 and 2"):
        in_fresh_process(lambda: fails(OwnError(1, 2)))


def test_what_cannot_be_sent_is_refused_before_a_process_starts():
    items = (x for x in [1])
    with pytest.raises(UnpicklableError, match="generator"):
        in_fresh_process(lambda: next(items))


def test_a_result_that_cannot_be_sent_back_is_said():
    with pytest.raises(UnpicklableError, match="result"):
        in_fresh_process(lambda: (x for x in [1]))


def test_a_process_that_dies_leaves_its_last_words():
    def dies() -> None:
        print("last words", flush=True)
        os._exit(7)

    with pytest.raises(FreshProcessError, match=r"code 7.*last words"):
        in_fresh_process(dies)


def test_a_module_that_the_other_process_does_not_find_is_said(tmp_path, monkeypatch):
    (tmp_path / "hidden_module.py").write_text("def work():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import hidden_module  # type: ignore[import-not-found]

    assert in_fresh_process(hidden_module.work) == 1
    monkeypatch.undo()
    with pytest.raises(UnpicklableError, match="hidden_module"):
        in_fresh_process(hidden_module.work)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_child(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, pathlib, signal, time
        from enxuto.evaluation.fresh import in_fresh_process

        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

        def waits():
            path = pathlib.Path({str(tmp_path / "pid")!r})
            path.with_suffix(".part").write_text(str(os.getpid()))
            path.with_suffix(".part").rename(path)
            time.sleep(60)

        in_fresh_process(waits)
        """)
    )
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": "src"})
    try:
        deadline = time.monotonic() + 1000
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline, "the child never started"
            time.sleep(0.05)
        parent.send_signal(signal.SIGINT)
        assert parent.wait() != 0
    finally:
        parent.kill()
        parent.wait()
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_network_with_parametrizations_travels() -> None:
    """torch refuses to pickle one; its class is made at run time."""
    model = nn.Sequential(weight_norm(nn.Linear(4, 3)), spectral_norm(nn.Linear(3, 2))).eval()
    x = torch.randn(5, 4)
    with torch.no_grad():
        there = in_fresh_process(lambda: torch.no_grad()(model)(x))
        assert torch.equal(there, model(x))


def test_a_part_of_a_large_tensor_travels_alone() -> None:
    large = torch.arange(1_000_000.0)
    assert len(_pickled((large[10:20], large[:5]), "two parts")) < 10_000
    assert in_fresh_process(lambda part: part.sum(), large[10:20]) == 145
