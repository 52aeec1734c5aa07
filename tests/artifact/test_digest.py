"""What a checkpoint is found by: the same in another process, another when anything that led there is."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

from enxuto import Prune, Recover, data
from enxuto.artifact.checkpoints import FolderCheckpoints, fingerprint
from enxuto.artifact.digest import digest_of, task_digest
from enxuto.recipe import run
from enxuto.task import Task
from toys import Mlp, inputs, seeded

X, Y = torch.arange(96.0).reshape(8, 12) / 96, torch.arange(8) % 5


class Net(nn.Module):
    def __init__(self, act=functional.relu):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(12, 16), nn.Linear(16, 5), act

    def forward(self, x):
        return self.b(self.act(self.a(x)))


class Twice(Net):
    def forward(self, x):
        return 2 * super().forward(x)


def task(net=Net, x=X, y=Y, loss=functional.cross_entropy, **more):
    return Task(seeded(net), **{"calibration": [x], "train": [(x, y)], "loss": loss, **more})


def weighted(weight):
    return lambda outputs, targets: weight * functional.cross_entropy(outputs, targets)


SCALE = 2.0


def scaled(outputs, targets):
    return SCALE * functional.cross_entropy(outputs, targets)


def by_default(outputs, targets, scale=1.0):
    return scale * functional.cross_entropy(outputs, targets)


def by_default_of_two(outputs, targets, scale=2.0):
    return scale * functional.cross_entropy(outputs, targets)


def test_everything_that_leads_to_a_result_gives_another_name(monkeypatch):
    frozen = Task(seeded(Net), calibration=[X])
    frozen.model.a.weight.requires_grad_(False)
    tasks = [
        task(),
        task(y=(Y + 1) % 5),
        task(x=X + 1e-6),
        task(seed=1),
        task(outputs="classes"),
        task(functools.partial(Net, torch.tanh)),
        task(functools.partial(Net, lambda x: x.relu() + 1)),
        task(functools.partial(Net, lambda x: x.relu() + 2)),
        task(Twice),
        task(calibration=[X, X]),
        task(train=None),
        task(loss=nn.CrossEntropyLoss()),
        task(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        task(loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3, 4, 5]))),
        task(loss=weighted(1.0)),
        task(loss=weighted(2.0)),
        task(loss=by_default),
        task(loss=by_default_of_two),
        task(loss=functools.partial(by_default, scale=3.0)),
        task(loss=scaled),
        task(evaluate=lambda model: 1.0),
        task(evaluate=data.accuracy(X[:, None, None], Y)),
        task(evaluate=data.accuracy(X[:, None, None], 1 - Y)),
        frozen,
    ]
    names = [task_digest(each) for each in tasks]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 4.0)
    names.append(task_digest(task(loss=scaled)))
    assert len(set(names)) == len(names)
    assert task_digest(task()) == names[0]
    assert task_digest(task(name="another title", test=lambda model: 0.0)) == names[0]
    recipes = [fingerprint(names[0], steps) for steps in ([Prune(0.5)], [Prune(0.6)], [Prune(0.5)] * 2, [Recover()])]
    assert len(set(recipes)) == 4


class Pictures(Dataset):
    """Items that are read when they are asked for, differently each time."""

    def __init__(self, labels, place=torch.rand):
        self.labels, self.place = labels, place

    def __len__(self):
        return 500

    def __getitem__(self, index):
        return self.place(3) + index, self.labels(index)


class Stream(IterableDataset):
    def __init__(self, last):
        self.last = last

    def __iter__(self):
        return (torch.tensor([number, self.last]) for number in range(10**9))


def same_label(index):
    return index % 3


def other_label(index):
    return index % 2


def loader(labels=same_label, y=None, place=torch.rand, **more):
    source = Pictures(labels, place) if y is None else TensorDataset(X, y)
    return DataLoader(source, **{"batch_size": 4, "shuffle": True, **more})


class Chosen(Sampler):
    """Batches of a sampler that holds another one, and the data."""

    def __init__(self, size):
        self.inner, self.chance = BatchSampler(RandomSampler(Pictures(same_label)), size, drop_last=False), torch.Generator()

    def __iter__(self):
        return iter(self.inner)


def loader_in_order(batches):
    return DataLoader(TensorDataset(X, Y), batch_sampler=batches)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: loader(y=Y), lambda: loader(y=Y.flip(0))),
        (loader, lambda: loader(other_label)),
        (loader, lambda: loader(batch_size=8)),
        (loader, lambda: loader(shuffle=False)),
        (loader, lambda: loader(collate_fn=lambda items: items)),
        (lambda: DataLoader(Stream(1), batch_size=4), lambda: DataLoader(Stream(2), batch_size=4)),
        (lambda: loader(place=lambda n: torch.tensor(random.random())), lambda: loader(other_label)),
        (lambda: loader(place=lambda n: np.random.default_rng().random()), lambda: loader(other_label)),
        (lambda: loader_in_order([[0, 1], [2, 3]]), lambda: loader_in_order([[0, 1], [3, 2]])),
        (lambda: loader_in_order(Chosen(2)), lambda: loader_in_order(Chosen(3))),
        (lambda: loader(shuffle=False, sampler=[0, 1, 2]), lambda: loader(shuffle=False, sampler=[2, 1, 0])),
        (lambda: Moved(X[:, None, None], Y), lambda: data.batches(X[:, None, None], Y, 4, seed=1)),
        (lambda: deque([(X, Y)]), lambda: deque([(X, Y + 1)])),
    ],
    ids=[
        *("tensors", "items", "size", "order", "collate", "stream", "chance", "own-chance"),
        *("batch-list", "batch-sampler", "sampler-list", "batches", "deque"),
    ],
)
def test_shuffled_loaders_have_a_name_and_other_data_another(one, other):
    tasks = [task(train=source()) for source in (one, one, other)]
    before = torch.get_rng_state(), random.getstate()
    names = [task_digest(each) for each in tasks]
    assert names[0] == names[1] != names[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def Moved(x, y):
    """Batches that were read a random number of times before."""
    found = data.batches(x, y, 4)
    for _ in range(random.randrange(9)):
        next(iter(found))
    return found


class Scaled(Net):
    """Keeps constants as plain tensors, and a list that is called like those of hooks."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale, self.my_hooks = torch.tensor([1.0, scale, 3.0]), [1, 2]


def test_plain_tensors_in_attributes_and_masks_of_pruning_count():
    masked = seeded(Net)
    prune.l1_unstructured(masked.a, "weight", 0.5)
    other = seeded(Net)
    prune.random_unstructured(other.a, "weight", 0.5)
    nets = [Scaled(), Scaled(4.0), masked, other]
    for net in nets:
        net.load_state_dict(seeded(Net).state_dict(), strict=False)
    names = [task_digest(Task(net, calibration=[X])) for net in nets]
    assert names == [task_digest(Task(net, calibration=[X])) for net in nets]
    assert len(set(names)) == len(nets)


class Shy:
    """An object that fails when it is looked at."""

    def __fingerprint__(self):
        raise KeyError("nothing to see")


def test_what_cannot_be_looked_at_is_never_found_again(caplog):
    assert digest_of([1, Shy()]) != digest_of([1, Shy()])
    assert "Shy cannot be told apart" in caplog.text


def test_large_data_are_sampled_and_no_depth_is_too_much(monkeypatch):
    monkeypatch.setattr("enxuto.artifact.digest.MOST_BYTES", 2**14)
    large = torch.zeros(2**20)
    names = [digest_of(large)]
    large[2**19 :] = 1
    names += [digest_of(large), digest_of(list(range(10**5))), digest_of(list(range(1, 10**5 + 1)))]
    assert len(set(names)) == 4
    deep: list = []
    for _ in range(10**4):
        deep = [deep]
    deep_too = [deep]
    deep_too.append(deep_too)  # a circle
    assert digest_of(deep) != digest_of(deep_too)


SCRIPT = """
import sys, torch
from torch import nn
from torch.nn import functional as F
import enxuto as ex
from enxuto.artifact.digest import task_digest
NAMES = {"red", "green", "blue", "yellow"}
class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.words = nn.Linear(12, 5), (lambda x: x.relu()), {"b", "a", "c"}
    def forward(self, x):
        return self.act(self.fc(x)) if "x" not in {"k", "l", "m"} else x
def helper(value):
    return value * len(NAMES)
def loss(outputs, targets):
    return helper(F.cross_entropy(outputs, targets))
def evaluate(model):
    return float("x" in {"p", "q", "r"})
def task():
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.rand(32, 12), torch.arange(32) % 5)
    train = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    return ex.Task(Head(), calibration=[torch.ones(4, 12)], train=train, loss=loss, evaluate=evaluate)
print(task_digest(task()))
"""


def named(script: str, seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_another_process_gives_the_same_name_and_another_helper_of_a_loss_does_not(tmp_path: Path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text(SCRIPT)
    other.write_text(SCRIPT.replace("value * len(NAMES)", "value + len(NAMES)"))
    first = named(str(one), "1")
    assert first == named(str(one), "2")
    assert first != named(str(other), "1")


def test_a_corrected_task_does_not_go_on_from_what_the_old_one_learned(tmp_path):
    def predicted(label, folder):
        brought = task(y=torch.full((8,), label))
        model, _ = run(brought, [Recover(epochs=100, learning_rate=0.05, teacher=0.0)], checkpoints=FolderCheckpoints(folder))
        return model(X).argmax(1).unique().tolist()

    assert predicted(0, tmp_path) == [0]
    assert predicted(3, tmp_path) == [3]


def test_the_same_task_finds_its_checkpoints(tmp_path, monkeypatch):
    brought = Task(seeded(Mlp), calibration=[inputs(Mlp)])
    run(brought, [Prune(0.5)], checkpoints=FolderCheckpoints(tmp_path))
    monkeypatch.setattr(Prune, "__call__", lambda *_: pytest.fail("it was made again"))
    run(Task(seeded(Mlp), calibration=[inputs(Mlp)]), [Prune(0.5)], checkpoints=FolderCheckpoints(tmp_path))
