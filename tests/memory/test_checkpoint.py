"""A checkpointed layer trains as before, to the last bit, and keeps less."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import enxuto as ex
from enxuto import zoo
from enxuto.errors import LayerError

CASES = {"resnet-8": ("stages.0.0", "stages.1.0"), "transformer": ("blocks.0",), "mobilenet-v2": ("blocks.1", "blocks.2")}


def trained(model: nn.Module) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    x, y = torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))
    F.cross_entropy(model.train()(x), y).backward()
    return [parameter.grad for parameter in model.parameters()], dict(model.named_buffers())


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_running_statistics_are_the_same_to_the_last_bit(name):
    model = zoo.build(name)
    plain, statistics = trained(copy.deepcopy(model))
    twice = copy.deepcopy(model)
    with ex.memory.checkpointed(twice, CASES[name]):
        again, other = trained(twice)
    assert all(map(torch.equal, plain, again))
    assert all(torch.equal(statistics[path], other[path]) for path in statistics)


def test_dropout_repeats_its_choices():
    model = nn.Sequential(nn.Sequential(nn.Linear(9, 9), nn.Dropout(0.5), nn.Linear(9, 9)))
    x = torch.randn(4, 9)

    def gradient(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(3)
        model(x).sum().backward()
        return model[0][0].weight.grad

    plain = gradient(copy.deepcopy(model))
    with ex.memory.checkpointed(model, ["0"]):
        assert torch.equal(gradient(model), plain)


def test_activations_shrink():
    model = zoo.build("resnet-20")
    batch = torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))
    plain = ex.memory.record(model, batch, loss=F.cross_entropy)
    with ex.memory.checkpointed(model, [f"stages.0.{block}" for block in range(3)]):
        less = ex.memory.record(model, batch, loss=F.cross_entropy)
        foreseen = ex.memory.predict(model, batch, loss=F.cross_entropy)
    assert less.activation_bytes < 0.65 * plain.activation_bytes
    assert foreseen.peak_bytes == pytest.approx(less.peak_bytes, rel=0.05)


def test_afterwards_the_model_is_what_it_was():
    model = zoo.build("resnet-8")
    kinds, names = [type(module) for module in model.modules()], list(model.state_dict())
    with ex.memory.checkpointed(model, ["stages.0.0"]):
        assert list(model.state_dict()) == names
        assert all(map(isinstance, model.modules(), kinds))
    with contextlib.suppress(ZeroDivisionError), ex.memory.checkpointed(model, ["stages.0.0"]):
        raise ZeroDivisionError
    assert [type(module) for module in model.modules()] == kinds


def test_a_copy_of_a_checkpointed_model_runs_its_own_layers():
    model = zoo.build("resnet-8")
    ex.memory.checkpoint_(model, ["stages.0.0"])
    double = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    gradients, _ = trained(double)
    assert any(bool(gradient.any()) for gradient in gradients)


def test_an_unknown_path_is_refused():
    model = zoo.build("lenet-5")
    for path in ("", "nowhere"):
        with pytest.raises(LayerError, match="no layer inside the model"), ex.memory.checkpointed(model, [path]):
            pass
