"""Evidence is gathered once of one network and read again: the same to the bit, of no other network, and never a damaged one."""

from __future__ import annotations

import copy

import torch
from tests.toys import Mlp, output, seeded, task_of

import enxuto as ex
from enxuto.artifact.checkpoints import FolderCheckpoints
from enxuto.evidence import kept
from enxuto.evidence.influence import influence
from enxuto.evidence.kept import keeping
from enxuto.evidence.moments import MomentsOf
from enxuto.recipe import run
from enxuto.sites import sites

KEYS = ["fc1.weight", "fc2.weight"]


class Batches:
    """Counts how often it is run through."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([torch.randn(30, 12, generator=torch.Generator().manual_seed(2))])


def asked(model, batches):
    of = MomentsOf(model, batches, sites(model))
    return [each.square for weight in sites(model) for each in of(weight.key)], influence(model, batches, sites(model))


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one[0], other[0], strict=True)) and one[1] == other[1]


def test_the_same_is_not_gathered_twice(tmp_path):
    model, batches = seeded(Mlp), Batches()
    with keeping(tmp_path, model):
        first = asked(model, batches)
        passes = batches.passes
        again = asked(model, batches)
    assert passes
    assert batches.passes == passes
    assert same(first, again)
    assert same(first, asked(model, batches)), "outside nothing is kept, and nothing changes"
    assert batches.passes == 2 * passes


def test_of_another_network_nothing_is_known(tmp_path):
    model, batches = seeded(Mlp), Batches()
    with keeping(tmp_path, model):
        asked(model, batches)
        passes = batches.passes
        asked(copy.deepcopy(model), batches)
    assert batches.passes == 2 * passes


def test_what_is_damaged_is_gathered_again(tmp_path):
    model, batches = seeded(Mlp), Batches()
    with keeping(tmp_path, model):
        first = asked(model, batches)
        passes = batches.passes
        for number, path in enumerate(sorted(tmp_path.iterdir())):
            path.write_bytes([b"", b"no archive", path.read_bytes()[:-40]][number % 3])
        assert same(first, asked(model, batches))
    assert batches.passes > passes


def test_what_is_large_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LARGEST_BYTES", 100)
    model, batches = seeded(Mlp), Batches()
    with keeping(tmp_path, model):
        asked(model, batches)
    assert [path for path in tmp_path.iterdir() if path.name.startswith("moments")] == []


def test_recipes_that_begin_alike_share_what_was_gathered(tmp_path):
    task, checkpoints = task_of(Mlp), FolderCheckpoints(tmp_path)
    alone = [run(task, [ex.Quantize(tolerance=t, rounding="gptq")])[0] for t in (0.001, 0.01)]
    shared = [run(task, [ex.Quantize(tolerance=t, rounding="gptq")], checkpoints=checkpoints)[0] for t in (0.001, 0.01)]
    files = list((tmp_path / "evidence").rglob("*.npz"))
    assert len(list((tmp_path / "evidence").iterdir())) == 1
    assert {path.name.partition("-")[0] for path in files} == {"moments", "influence"}
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(output(one, task.sample), output(other, task.sample))
