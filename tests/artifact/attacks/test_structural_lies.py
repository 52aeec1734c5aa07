"""Files that lie about the structure of a network, with right checksums: none loads and fails later, none takes memory.

What is told is in `lies.py`; here each 31st of some twenty-five thousand. `bench/hostile_files.py` tells all.
"""

import json
import subprocess
import sys

import pytest

import lies
from enxuto.layers.kinds import KINDS, _parameters
from enxuto.layers.lowrank import THIN
from enxuto.layers.rules import ARGUMENTS, FORBIDDEN

STEP = 31
NUMBERS = ("rows", "rank", "columns", "in_rank")  # that only layers of thin ones have
NOISE_BYTES = 1 << 24  # that an allocator, an error message or a first import may take in a process


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Name and outcome of each lie, told in a process of its own, which a lie may end."""
    command = [sys.executable, lies.__file__, str(tmp_path_factory.mktemp("lies")), str(STEP)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} ended the process: {done.stderr[-2000:]}"
    return {name["lie"]: outcome for name, outcome in zip(lines[::2], lines[1::2], strict=True)}


def test_no_file_that_lies_is_loaded_and_fails_later(told):
    assert len(told) > 500
    assert {name.split(",")[0] for name in told} == set(lies.LAYERS)
    assert [
        (name, found["found"]) for name, found in told.items() if found["found"] not in ("ran", "refused", "not written")
    ] == []
    assert sum(found["found"] == "refused" for found in told.values()) > len(told) * 0.9


@pytest.mark.parametrize("kind", THIN)
def test_no_thin_layer_lies_about_its_parts(kind, tmp_path, monkeypatch):
    """All of what no tensor tells, and parts that fit their tensors but not one another."""
    monkeypatch.setattr(lies, "LAYERS", {kind.__name__: lies.LAYERS[kind.__name__]})
    told = next(lies.honest(tmp_path))
    edit = next(edit for edit in told.meta["edits"] if edit["path"] == "layer")
    parts = [*lies.lies_of_parts(told)]
    assert len(parts) >= 4
    tried = [
        *parts,
        *((name, lie) for name, lie in lies.lies_of_arguments(told, edit) if name.split(": ")[1].startswith(NUMBERS)),
    ]
    found = {name: lies.outcome(lie, tmp_path / "lie.nxt")["found"] for name, lie in tried}
    assert {name: how for name, how in found.items() if how not in ("ran", "refused")} == {}
    assert not [name for name, _ in parts if found[name] != "refused"]


def test_no_file_that_lies_takes_ten_times_its_size(told):
    most = {name: found["grown_bytes"] for name, found in told.items()}
    assert [name for name, grown in most.items() if grown > 10 * told[name]["file_bytes"] + NOISE_BYTES] == []


def test_parts_of_a_thin_layer_that_do_not_go_together_are_refused(tmp_path):
    honest = next(each for each in lies.honest(tmp_path) if each.name == "KroneckerLinear, None")
    [edit] = [edit for edit in honest.meta["edits"] if edit["path"] == "layer"]
    found = [lies.outcome(lie, tmp_path / "lie.nxt")["found"] for _, lie in lies.lies_of_arguments(honest, edit)]
    assert set(found) <= {"ran", "refused"}
    assert found.count("refused") > 0.9 * len(found)


def test_every_kind_a_file_may_name_is_lied_about():
    assert set(KINDS) <= set(lies.LAYERS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_has_a_rule_or_cannot_be_said(kind):
    for name in _parameters(KINDS[kind]):
        assert (name in ARGUMENTS) != (name in FORBIDDEN), name
