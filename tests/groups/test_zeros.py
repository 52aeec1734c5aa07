from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from channel_nets import image_nets
from enxuto.cut import Group
from enxuto.groups import find_groups
from enxuto.sites import held

NETS = image_nets()
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def groups_of(name: str) -> tuple[Group, ...]:
    return find_groups(NETS[name], IMAGES).groups


def silence_(model: nn.Module, group: Group, units: list[int]) -> None:
    """Zeros in all that makes the units: rows, biases, and the scale and shift of batch norms."""
    with torch.no_grad():
        for part in group.slices:
            tensor = getattr(model.get_submodule(part.path), part.name)
            if isinstance(tensor, nn.Parameter) and (part.writes or not part.reads):
                held(model, part.address).index_fill_(part.dim, torch.tensor(part.indices(units)), 0.0)


@pytest.mark.parametrize(
    "name",
    ["residual", "depthwise", "dense", "grouped", "shuffled", "permuted", "lstm", "gru", "rnn", "bidirectional lstm",
     "bidirectional gru", "projected lstm", "steps", "gates", "tokens", "padded"],
)  # fmt: skip
def test_exactly_the_silent_units_are_found(name: str) -> None:
    model = copy.deepcopy(NETS[name])
    groups = groups_of(name)
    silent = [[unit for unit in (1, 3, 4) if unit < group.size - 1] for group in groups]
    for group, units in zip(groups, silent, strict=True):
        silence_(model, group, units)
    found = find_groups(model, IMAGES)
    assert [sorted(zeros) for zeros in found.zeros] == silent


class Net(nn.Module):
    """One hidden layer with a batch norm and a given activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.fc1, self.norm, self.act, self.fc2 = nn.Linear(4, 8), nn.BatchNorm1d(8), activation, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.norm(self.fc1(x))))


def zeros_of(model: nn.Module) -> list[int]:
    return sorted(find_groups(model.eval(), torch.randn(2, 4)).zeros[0])


def test_a_row_of_zeros_is_not_a_zero_channel_when_the_norm_shifts_it() -> None:
    model = Net(nn.ReLU())
    with torch.no_grad():
        model.fc1.weight[:3] = 0
        model.fc1.bias[:3] = 0
        model.norm.bias[:3] = torch.tensor([0.5, 0.0, -0.5])
    assert zeros_of(model) == [1, 2]  # a negative constant is zero behind the ReLU


def test_half_is_not_zero_behind_a_sigmoid() -> None:
    model = Net(nn.Sigmoid())
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0, 0
    assert zeros_of(model) == []


def test_a_channel_that_only_zeros_read_can_go() -> None:
    model = Net(nn.ReLU())
    with torch.no_grad():
        model.fc2.weight[:, 5] = 0
    assert zeros_of(model) == [5]


def test_a_hidden_unit_that_another_unit_wakes_is_not_zero() -> None:
    model = copy.deepcopy(NETS["gru"])
    group = groups_of("gru")[0]
    silence_(model, group, [1, 3])
    with torch.no_grad():
        model.rnn.weight_hh_l0[2 * 10 + 3, 0] = 0.1  # the content gate of unit 3 listens to unit 0
    assert find_groups(model, IMAGES).zeros == (frozenset([1]),)


class Sequences(nn.Module):
    """Two recurrent layers, the first of 8 hidden units, and what a reader makes of them."""

    def __init__(self, kind: type[nn.RNNBase], read: Callable[[Sequences, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.first, self.second = kind(5, 8, batch_first=True), kind(5, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self, x))


def from_state(model: Sequences, x: Tensor) -> Tensor:
    """Encoder and decoder: the second starts in the last state of the first."""
    return model.second(x, model.first(x)[1])[0]


def step_by_step(model: Sequences, x: Tensor) -> Tensor:
    state = None
    for step in range(x.shape[1]):
        out, state = model.first(x[:, step : step + 1], state)
    return out


READERS: dict[str, Callable[[Sequences, Tensor], Tensor]] = {
    "from a state": from_state,
    "step by step": step_by_step,
    "maximum": lambda model, x: model.first(x)[0].max(1).values,
    "chosen steps": lambda model, x: model.first(x)[0][torch.arange(len(x)), torch.full((len(x),), 2)],
    "steps that the input chooses": lambda model, x: model.first(x)[0][torch.arange(len(x)), (x[:, 0, 0] > 0).long()],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_hidden_units_that_start_at_zero_and_stay_there_are_found(kind: type[nn.RNNBase], reader: str) -> None:
    model, x = Sequences(kind, READERS[reader]).eval(), torch.randn(4, 6, 5)
    gates = {nn.GRU: 3, nn.LSTM: 4, nn.RNN: 1}[kind]
    with torch.no_grad():
        for tensor in [*model.first.parameters(), *model.second.parameters()]:
            tensor.unflatten(0, (gates, 8))[:, [1, 4]] = 0
    assert find_groups(model, x).zeros == (frozenset([1, 4]),)
    with torch.no_grad():
        model.first.weight_ih_l0.unflatten(0, (gates, 8))[min(2, gates - 1), 4] = 0.1  # the content of unit 4 is no longer zero
    assert find_groups(model, x).zeros == (frozenset([1]),)
