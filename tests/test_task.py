import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from enxuto.batches import count
from enxuto.errors import RangeError, TargetError, TaskError
from enxuto.task import Target, Task
from toys import Mlp, ResidualCnn, inputs, photograph, seeded, unchanged

X = torch.randn(2, 12)


def test_the_least_task_is_a_model_and_inputs():
    task = Task(seeded(Mlp), calibration=[X])
    assert torch.equal(task.sample, X)
    assert task.seed == 0


def test_making_a_task_leaves_the_model_as_it_was():
    model = seeded(ResidualCnn).train()
    model.bn1.eval()
    before = photograph(model)
    Task(model, calibration=[inputs(ResidualCnn)])
    assert unchanged(model, before)


def test_a_generator_of_batches_can_be_read_again_and_again():
    task = Task(seeded(Mlp), calibration=(X for _ in range(3)))
    assert len(list(task.calibration)) == len(list(task.calibration)) == 3


class Broken(nn.Module):
    def __init__(self, value=None):
        super().__init__()
        self.value = value

    def forward(self, x):
        if self.value is None:
            raise KeyError("inside")
        return self.value


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have us compile
        return torch.jit.script(seeded(Mlp))


def sparse():
    model = seeded(Mlp)
    model.register_buffer("seen", torch.eye(3).to_sparse())
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Task("net", calibration=[X]), "model is str, not a torch.nn.Module"),
        (lambda: Task(Mlp, calibration=[X]), "model is type, not a torch.nn.Module"),
        (lambda: Task(seeded(Mlp), calibration=[]), "calibration holds no batch"),
        (lambda: Task(seeded(Mlp), calibration=X), r"write calibration=\[x\]"),
        (lambda: Task(seeded(Mlp), calibration=None), "must be a list of input batches"),
        (lambda: Task(seeded(Mlp), calibration="data"), "must be a list of input batches"),
        (lambda: Task(seeded(Mlp), calibration=5), "calibration is int and must be a list of input batches"),
        (lambda: Task(seeded(Mlp), calibration={"x": X}), "calibration is dict and must be a list of input batches"),
        (lambda: Task(seeded(Mlp), calibration=[X.numpy()]), r"is ndarray; a batch is a tensor.*torch\.as_tensor\(a\)"),
        (lambda: Task(seeded(Mlp), calibration=["a"]), "is str; a batch is a tensor"),
        (lambda: Task(seeded(Mlp), calibration=[X[:0]]), r"a tensor \(0, 12\) without values"),
        (lambda: Task(seeded(Mlp), calibration=[X, X[:0]]), r"a tensor \(0, 12\) without values is in calibration batch 2"),
        (lambda: Task(seeded(Mlp), calibration=[X], seed="1"), r"seed='1' \(str\) is no whole number"),
        (lambda: Task(seeded(Mlp), calibration=[X], seed=-1), "seed=-1 is no whole number"),
        (lambda: Task(seeded(Mlp), calibration=[X], seed=2**80), "is no whole number from 0"),
        (lambda: Task(seeded(Mlp), calibration=[X], name=3), "name=3 is no text"),
        (lambda: Task(seeded(Mlp), calibration=[X], train=5), "train is int, not a list or DataLoader"),
        (lambda: Task(nn.LazyLinear(3), calibration=[X]), "'weight' is not initialised yet; call the model once"),
        (lambda: Task(seeded(Mlp).to("meta"), calibration=[X]), r"'fc1\.weight' is on the meta device"),
        (lambda: Task(torch.compile(seeded(Mlp), backend="eager"), calibration=[X]), r"torch\.compile.*model\._orig_mod"),
        (lambda: Task(scripted(), calibration=[X]), "the model is TorchScript.* pass the nn.Module it was made from"),
        (lambda: Task(sparse(), calibration=[X]), r"'seen' is a torch\.sparse_coo tensor; only dense"),
        (lambda: Task(seeded(Mlp), calibration=iter(())), "calibration holds no batch"),
        (
            lambda: Task(seeded(Mlp), calibration=[torch.randn(2, 7)]),
            r"fails on its own sample inputs \(\(2, 7\)\): RuntimeError",
        ),
        (lambda: Task(seeded(Mlp), calibration=[(X, torch.zeros(2))]), r"fails on its own sample inputs \(tuple\): TypeError"),
        (lambda: Task(Broken(), calibration=[X]), "KeyError: 'inside'"),
        (lambda: Task(Broken("text"), calibration=[X]), "returned str without a tensor"),
        (lambda: Task(Broken(torch.tensor(float("nan"))), calibration=[X]), "NaN or infinite outputs"),
        (lambda: Task(seeded(Mlp), calibration=[X], evaluate=0.9), "evaluate is float, not a function"),
        (lambda: Task(seeded(Mlp), calibration=[X], loss="mse"), "loss is str, not a function"),
        (lambda: Task(seeded(Mlp), calibration=[X], test=[1]), "test is list, not a function"),
    ],
)
def test_what_is_missing_or_broken_is_said_at_once(make, words):
    with pytest.raises(TaskError, match=words):
        make()


@pytest.mark.parametrize(("path", "value"), [("fc2.weight", float("nan")), ("fc1.bias", float("inf"))])
def test_weights_that_are_not_finite_are_named(path, value):
    model = seeded(Mlp)
    model.get_parameter(path).data.view(-1)[3] = value
    with pytest.raises(TaskError, match=rf"'{path}' holds 1 NaN or infinite values of \d+; train or load"):
        Task(model, calibration=[X])


def test_buffers_that_are_not_finite_are_named():
    model = seeded(ResidualCnn)
    model.bn2.running_var[0] = float("nan")
    with pytest.raises(TaskError, match=r"'bn2\.running_var'"):
        Task(model, calibration=[inputs(ResidualCnn)])


def test_a_mask_of_minus_infinity_is_no_fault_where_the_outputs_are_finite():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(8, 8)
            self.register_buffer("mask", torch.full((4, 4), -float("inf")).triu(1))

        def forward(self, x):
            return self.mix((x @ x.T + self.mask).softmax(-1) @ x)

    model = Causal()
    assert Task(model, calibration=[torch.randn(4, 8)]).model is model
    model.mask[0] = -float("inf")
    with pytest.raises(TaskError, match="NaN or infinite outputs on its own sample inputs"):
        Task(model, calibration=[torch.randn(4, 8)])


def test_only_batches_that_know_their_number_say_it():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(4))

    assert count([1, 2]) == 2
    assert count(DataLoader([1, 2, 3], batch_size=2)) == 2
    assert count(DataLoader(Stream())) is None
    assert count(iter([1])) is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TargetError, "the target is empty"),
        ({"size": "big"}, RangeError, "size='big' is not understood"),
        ({"size": 0}, RangeError, "not a positive number"),
        ({"size": [1]}, RangeError, r"size=\[1\] \(list\) is not a positive number"),
        ({"size": True}, RangeError, r"size=True \(bool\)"),
        ({"compression": "20"}, RangeError, r"compression='20' \(str\) is before / after"),
        ({"macs": "50%"}, RangeError, r"macs='50%' \(str\) is the fraction left"),
        ({"latency": torch.tensor(0.5)}, RangeError, r"latency=tensor\(0.5000\) \(Tensor\)"),
        ({"max_drop": [1]}, RangeError, r"max_drop=\[1\] is not understood"),
        ({"compression": 0.5}, RangeError, "compression=0.5"),
        ({"compression": float("nan")}, RangeError, "compression=nan"),
        ({"macs": 0}, RangeError, "macs=0"),
        ({"macs": 2}, RangeError, "macs=2"),
        ({"latency": -1}, RangeError, "latency=-1"),
        ({"max_drop": -0.1}, RangeError, "max_drop=-0.1"),
        ({"max_drop": "some"}, RangeError, "max_drop='some' is not understood"),
        ({"max_drop": float("nan")}, RangeError, "max_drop=nan"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Target(**arguments)


def test_a_target_is_kept_in_bytes_and_fractions():
    target = Target(size="100 kB", compression=20, max_drop="0.5%")
    assert target.size == 100_000
    assert target.drop == pytest.approx(0.005)
    assert target.limit_bytes(1_000_000) == 50_000
    assert target.limit_bytes(10_000_000) == 100_000
    assert Target(macs=0.5).drop == Target(macs=0.5).limit_bytes(10) == float("inf")


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.box, self.scores = torch.nn.Linear(12, 4), torch.nn.Linear(12, 3)

    def forward(self, x):
        return {"box": self.box(x), "heads": [self.scores(x), x.sum(1)]}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ("labels", "outputs='labels' is not known; use one of 'classes', 'values', 'ignore'"),
        (3, "outputs=3 is not known"),
        ({"box": "boxes"}, "is not known"),
        ({"boxes": "values"}, r"names 'boxes', and the model returns 'box' \(2, 4\), 'heads.0' \(2, 3\), 'heads.1' \(2,\)"),
        ({"heads.1": "classes"}, r"output 'heads.1' holds a score for each class, and it is torch.float32 of shape \(2,\)"),
        ("ignore", "no output is left"),
    ],
)
def test_outputs_are_said_by_the_names_that_are_there(outputs, words):
    with pytest.raises(TaskError, match=words):
        Task(Detector(), calibration=[X], outputs=outputs)
    assert Task(Detector(), calibration=[X], outputs={"heads.0": "classes", "b*": "ignore"})


def test_a_network_that_asks_for_its_own_mask_is_told_so_before_any_step():
    class Asking(Mlp):
        def forward(self, x):
            return super().forward(x) * self.fc1.weight_mask.mean()

    model = Asking()
    nn.utils.prune.l1_unstructured(model.fc1, "weight", 0.5)
    with pytest.raises(TaskError, match=r"fails on its own sample inputs once its masks .* plain weights .*'weight_mask'"):
        Task(model, calibration=[torch.randn(4, 12)])


def test_an_infinite_output_hides_no_copy_that_answers_otherwise():
    class Other(Mlp):
        """A copy of it is another network."""

        def __deepcopy__(self, memo):
            made = Other()
            made.load_state_dict(self.state_dict())
            torch.nn.init.zeros_(made.fc1.weight)
            return made

        def forward(self, x):
            return x, super().forward(x).masked_fill(x[:, :5] > 0, float("inf"))

    with pytest.raises(TaskError, match="a copy of the model gives other outputs"):
        Task(seeded(Other), calibration=[X])


def test_only_the_devices_of_the_model_are_asked_for_their_random_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    Task(seeded(Mlp), calibration=[X])
