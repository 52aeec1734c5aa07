"""Memory before and after compression: coded layers hold codes, fewer channels hold less, and what fails is said."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto.memory.footprint import footprints
from enxuto.memory.profile import ACTIVATIONS, OPTIMIZER, WEIGHTS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def task(model: nn.Module, **more: Any) -> ex.Task:
    return ex.Task(model, calibration=[torch.randn(8, 1, 8, 8)], **more)


def at_peak(run: Any, category: str) -> int:
    return int(run.bytes[category][run.peak])


def test_codes_count_as_weights_and_decoded_weights_do_not() -> None:
    given = task(Net())
    small, _ = ex.run(given, [ex.Quantize(bits=4)])
    (found,) = footprints(given, small)
    assert (found.what, found.batch, found.words) == ("inference", 8, "")
    assert found.before is not None
    assert found.after is not None
    assert at_peak(found.before, WEIGHTS) == sum(p.numel() * 4 for p in given.model.parameters())
    assert at_peak(found.after, WEIGHTS) < at_peak(found.before, WEIGHTS) / 4


def test_fewer_channels_need_less_of_everything_in_training() -> None:
    x, y = torch.randn(8, 1, 8, 8), torch.randint(5, (8,))
    given = task(Net(), train=[(x, y)], loss=F.cross_entropy)
    small, _ = ex.run(given, [ex.PruneChannels(macs=0.5), ex.Quantize(bits=4)])
    _, training = footprints(given, small)
    assert training.what == "training step"
    assert training.before is not None
    assert training.after is not None
    for category in (WEIGHTS, ACTIVATIONS, OPTIMIZER):
        assert 0 < at_peak(training.after, category) < at_peak(training.before, category)


def test_looking_leaves_the_models_and_the_random_numbers_alone() -> None:
    x, y = torch.randn(8, 1, 8, 8), torch.randint(5, (8,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)
    given = task(Net().eval(), train=loader, loss=F.cross_entropy)
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    state = torch.get_rng_state()
    assert len(footprints(given, given.model)) == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert not given.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.model.state_dict().items())
    assert all(parameter.grad is None for parameter in given.model.parameters())


def test_why_a_run_cannot_be_foreseen_is_kept() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError("of the loss")

    given = task(Net(), train=[(torch.randn(2, 1, 8, 8), torch.zeros(2))], loss=loss)
    inference, training = footprints(given, given.model)
    assert inference.before is not None
    assert training.before is None
    assert training.words == "ZeroDivisionError: of the loss"
