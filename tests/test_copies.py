"""Copies of networks that hold more than tensors: hooks, locks, files, graphs. The original never sees what a copy does."""

import copy
import functools
import threading
import types
from collections import deque
from typing import NamedTuple

import pytest
import torch
from torch import nn

from enxuto.artifact.save import load, save
from enxuto.copies import copied
from enxuto.errors import TaskError
from enxuto.exporters import export
from enxuto.memory.prediction import predict
from enxuto.recipe import run
from enxuto.steps.channels import PruneChannels
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.task import Task
from toys import output

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
Y = 3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


class Taps(nn.Module):
    """Takes a feature of its trunk by a hook, in one of the ways in which people do."""

    def __init__(self, way):
        super().__init__()
        self.trunk, self.head, self.seen = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), nn.Linear(16, 4), {}
        way(self)

    def keep(self, module, given, output):
        self.seen["a"] = output

    def forward(self, x):
        return self.trunk(x) + self.head(self.seen["a"])


def closure_over_self(net):
    net.trunk[0].register_forward_hook(lambda module, given, output: net.seen.__setitem__("a", output))


def closure_over_the_dict(net):
    seen = net.seen

    def hook(module, given, output):
        seen["a"] = output

    net.trunk[0].register_forward_hook(hook)


def a_default_argument(net):
    net.trunk[0].register_forward_hook(lambda module, given, output, net=net: net.seen.__setitem__("a", output))


def a_bound_method(net):
    net.trunk[0].register_forward_hook(net.keep)


def a_partial_of_a_closure(net):
    def hook(name, module, given, output):
        net.seen[name] = output

    net.trunk[0].register_forward_hook(functools.partial(hook, "a"))


def a_decorated_closure(net):
    def hook(module, given, output):
        net.seen["a"] = output

    def logged(inner):
        @functools.wraps(inner)
        def outer(*arguments):
            return inner(*arguments)

        return outer

    net.trunk[0].register_forward_hook(logged(hook))


def a_forward_of_its_own(net):
    closure_over_self(net)
    trunk, head = net.trunk, net.head
    net.forward = lambda x: trunk(x) + head(net.seen["a"])


WAYS = [
    *(closure_over_self, closure_over_the_dict, a_default_argument, a_bound_method),
    *(a_partial_of_a_closure, a_decorated_closure, a_forward_of_its_own),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_takes_its_own_features(way):
    torch.manual_seed(0)
    net = Taps(way).eval()
    other = copied(net)
    expected = output(net, Y)
    output(net, X)
    assert torch.equal(output(other, Y), expected)
    with torch.no_grad():
        other.trunk[0].weight.zero_()
    assert torch.equal(output(net, Y), expected)
    assert not torch.allclose(output(other, Y), expected)


@pytest.mark.parametrize("step", [Quantize(bits=8), Factorize(rank=8, layers="trunk.0")], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_hooks_go_on_in_what_a_step_returns(way, step, tmp_path):
    torch.manual_seed(0)
    net = Taps(way).eval()
    nn.init.normal_(net.trunk[0].weight)
    step = Factorize(rank=5, layers="trunk.0") if isinstance(step, Factorize) else step
    small, _ = run(Task(net, calibration=[X]), [step])
    output(net, X)
    mine = output(small, Y)
    with torch.no_grad():
        assert torch.allclose(small.seen["a"], small.trunk[0](Y))
    save(small, tmp_path / "m.nxt", original=net)
    again = load(tmp_path / "m.nxt", into=net)
    assert torch.equal(output(again, Y), mine)
    assert torch.allclose(mine, small.trunk(Y) + small.head(small.trunk[0](Y)))


class Pair(NamedTuple):
    name: str
    hook: object


HOLDERS = {
    "list": (lambda hook: [hook], lambda held: held[0]),
    "deque": (lambda hook: deque([hook]), lambda held: held[0]),
    "tuple of tuples": (lambda hook: ((hook,), 1), lambda held: held[0][0]),
    "named tuple": (lambda hook: Pair("a", hook), lambda held: held.hook),
    "set": (lambda hook: {hook}, lambda held: next(iter(held))),
    "frozenset": (lambda hook: frozenset([hook]), lambda held: next(iter(held))),
    "partial of partials": (lambda hook: functools.partial(functools.partial(call_it, hook)), lambda held: held),
    "keyword": (lambda hook: functools.partial(call_it, hook=hook), lambda held: lambda x: held(x=x)),
    "object": (lambda hook: types.SimpleNamespace(hook=hook), lambda held: held.hook),
    "closure of a closure": (lambda hook: lambda x: 2 * hook(x), lambda held: held),
    "default in a tuple": (lambda hook: lambda x, given=(hook,): given[0](x), lambda held: held),
}


def call_it(hook, x):
    return hook(x)


def as_from_python_3_14(value, memo):
    """deepcopy that asks no memo for functions."""
    hidden = {key: made for key, made in memo.items() if isinstance(made, types.FunctionType)}
    for key in hidden:
        del memo[key]
    made = copy.deepcopy(value, memo)
    memo.update(hidden)
    return made


@pytest.mark.parametrize("version", ["here", "3.14"])
@pytest.mark.parametrize("kind", HOLDERS)
def test_functions_follow_the_copy_wherever_they_are_held(kind, version, monkeypatch):
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.held = HOLDERS[kind][0](lambda x: 2 * self.layer(x))
            self.again = self.held

        def forward(self, x):
            return HOLDERS[kind][1](self.held)(x)

    if version == "3.14":
        monkeypatch.setattr("enxuto.copies.copy", types.SimpleNamespace(deepcopy=as_from_python_3_14, Error=copy.Error))
    net = Holding().eval()
    before, held = output(net, X), net.held
    other = copied(net)
    nn.init.zeros_(other.layer.weight)
    nn.init.zeros_(other.layer.bias)
    assert not output(other, X).any()
    assert other.again is other.held
    assert net.held is held
    assert torch.equal(output(net, X), before)


NET = None


def a_global_name(net):
    global NET  # noqa: PLW0603  the fault itself: a script's hook names the network that the script made
    NET = net
    net.trunk[0].register_forward_hook(lambda module, given, output: NET.seen.__setitem__("a", output))


def test_a_hook_that_names_the_original_is_refused_by_its_place():
    net = Taps(a_global_name).eval()
    with pytest.raises(TaskError, match=r"a copy .* gives other outputs than the model itself: .*hooks are at: trunk\.0"):
        Task(net, calibration=[X])


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_model_of_chance_is_no_model_that_reads_its_original():
    Task(nn.Sequential(nn.Linear(8, 4), Noisy()), calibration=[X])


class Holder(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.a, self.held = nn.Linear(8, 8), held

    def forward(self, x):
        return self.a(x)


class Table:
    def __init__(self):
        self.lock, self.last = threading.Lock(), [nn.Linear(8, 1)(X).sum()]


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: open(__file__, encoding="utf-8"),  # noqa: SIM115
        lambda: types,
        lambda: torch.Generator().manual_seed(3),
        lambda: [nn.Linear(8, 1)(X).sum()],
        lambda: {"losses": (nn.Linear(8, 1)(X).sum(),)},
        Table,
    ],
    ids=["lock", "file", "module", "generator of torch", "list of losses", "dict of losses", "object"],
)
def test_what_an_attribute_holds_is_copied_or_shared(make, tmp_path):
    held = make()
    net = Holder(held).eval()
    small, _ = run(Task(net, calibration=[X]), [Quantize(bits=8)])
    assert net.held is held
    assert type(small.held) is type(held)
    save(small, tmp_path / "m.nxt", original=net)
    assert torch.equal(output(load(tmp_path / "m.nxt", into=net), X), output(small, X))
    net = nn.Sequential(Holder(held), nn.ReLU(), nn.Linear(8, 4)).eval()
    thin, _ = run(Task(net, calibration=[X]), [PruneChannels(sparsity=0.5), Quantize(bits=8)])
    assert output(thin, X).shape == (len(X), 4)
    assert predict(net, (X, X[:, :4]), loss=nn.functional.mse_loss).peak_bytes > predict(net, X).peak_bytes
    if hasattr(held, "close"):
        held.close()


class Remembering(nn.Module):
    """Keeps what a hook saw: in the network, and in a dict that only the hook holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.seen = nn.Linear(8, 8), nn.Linear(8, 4), {}
        outside = {}

        def keep(module, given, made):
            self.seen["a"] = outside["a"] = made

        self.a.register_forward_hook(keep)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_what_a_network_keeps_of_a_run_without_values_is_nowhere_in_it(tmp_path):
    net = Remembering().eval()
    task = Task(net, calibration=[X])
    predict(net, X)
    small, _ = run(task, [PruneChannels(sparsity=0.5), Quantize(bits=8), Prune(0.5)])
    export(small, tmp_path / "m.onnx", calibration=[X])
    for model in (net, small):
        copied(model)
        assert type(model.seen.get("a", X)) is torch.Tensor
        output(model, X)
    assert torch.equal(net.seen["a"], net.a(X))
    assert small.seen["a"].shape == (len(X), 4)


def test_what_can_be_neither_copied_nor_shared_is_named_at_once():
    net = nn.Sequential(Holder(number for number in range(3)))
    with pytest.raises(TaskError, match=r"'0\.held' of the model is generator, which cannot be copied \(.*\), and steps work"):
        Task(net, calibration=[X])


def test_a_traced_graph_is_kept(tmp_path):
    net = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))).eval()
    small, _ = run(Task(net, calibration=[X]), [Factorize(rank=2), Quantize(bits=8)])
    save(small, tmp_path / "m.nxt", original=net)
    assert torch.equal(output(load(tmp_path / "m.nxt", into=net), X), output(small, X))


def test_a_program_of_torch_export_is_refused_at_once():
    program = torch.export.export(nn.Sequential(nn.Linear(8, 8)), (X,)).module()
    with pytest.raises(TaskError, match=r"the model is a program of torch\.export.*pass the nn\.Module"):
        Task(program, calibration=[X])


def test_a_network_built_in_inference_mode_can_be_compressed_and_trained():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    task = Task(net, calibration=[X])
    small, _ = run(task, [Quantize(bits=8, layers="0")])
    assert torch.allclose(output(small, X), output(net, X), atol=0.05)
    other = copied(net)
    other.train()(X).sum().backward()
    assert other[0].weight.grad is not None
