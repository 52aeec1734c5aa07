"""Weights that torch computes at each call: taken over by every copy, or named."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from enxuto.artifact.save import load, save
from enxuto.errors import LayerError
from enxuto.layers.computed import computed, has_computed
from enxuto.steps.channels import PruneChannels
from enxuto.steps.factorize import Factorize
from enxuto.steps.fold import Fold
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.surgery import duplicate
from enxuto.task import Task
from toys import output

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(256, 8)).eval()


def masked(model):
    layers = [(model[0], "weight"), (model[3], "weight"), (model[3], "bias")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.6)
    prune.random_unstructured(model[6], "weight", amount=0.5)
    prune.l1_unstructured(model[6], "weight", amount=0.5)  # a second mask on the first


def partly_masked(model):
    prune.l1_unstructured(model[3], "weight", amount=0.6)


def old_norms(model):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[0])
    torch.nn.utils.spectral_norm(model[3])


def new_norms(model):
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[3])
    parametrizations.orthogonal(model[6])


def frozen(way):
    def both(model):
        way(model)
        model.requires_grad_(False)

    return both


FROZEN = [frozen(masked), frozen(old_norms), frozen(new_norms)]
WAYS = [masked, partly_masked, old_norms, new_norms, *FROZEN]


def wrapped(way):
    model = net()
    way(model)
    with torch.no_grad():
        output(model, X)
    return model.eval()


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_has_plain_weights_of_the_same_values_and_the_original_keeps_its_own(way):
    model = wrapped(way)
    expected, names = output(model, X), list(model.state_dict())
    values = {path: module.weight.detach().clone() for path, module in model.named_children() if hasattr(module, "weight")}
    small = duplicate(model)
    assert list(small.state_dict()) == list(net().state_dict())
    assert [p.requires_grad for p in small.parameters()] == [way not in FROZEN] * 8
    assert {type(module) for module in small} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear}
    for path, value in values.items():
        assert torch.equal(small.get_submodule(path).weight, value)
    assert torch.allclose(output(small, X), expected, atol=1e-6)  # of weights that lie otherwise: sums are rounded otherwise
    assert has_computed(model)
    assert not has_computed(small)
    for parameter in small.parameters():
        parameter.data.zero_()
    assert list(model.state_dict()) == names
    assert torch.equal(output(model, X), expected)


@pytest.mark.parametrize(
    "step",
    [Quantize(bits=8), Share(bits=6), Prune(sparsity=0.8), PruneChannels(sparsity=0.25), Factorize(rank=4), Fold()],
    ids=lambda step: type(step).__name__,
)
@pytest.mark.parametrize("way", WAYS)
def test_every_step_treats_such_layers_and_its_result_is_kept(way, step, tmp_path):
    model = wrapped(way)
    small, record = step(model, Task(model, calibration=[X]))
    assert "3" in " ".join(f"{change.path} {change.what}" for change in record.changes) or isinstance(step, Fold)
    assert not [change for change in record.skipped if "computed" in change.why]
    save(small, tmp_path / "m.nxt", original=model)
    for fresh in (model, net()):
        assert torch.equal(output(load(tmp_path / "m.nxt", into=fresh), X), output(small.eval(), X))


def test_zeros_under_a_mask_stay_zeros():
    model = wrapped(masked)
    small, _ = Quantize(bits=8)(model, Task(model, calibration=[X]))
    for path in ("0", "3", "6"):
        gone = model.get_submodule(path).weight_mask == 0
        assert int(gone.sum()) > 0
        assert not bool(small.get_submodule(path).weight[gone].any())


def test_a_masked_network_is_saved_without_its_masks(tmp_path):
    model, plain = wrapped(masked), duplicate(wrapped(masked))
    save(model, tmp_path / "masked.nxt")
    save(plain, tmp_path / "plain.nxt")
    assert (tmp_path / "masked.nxt").read_bytes() == (tmp_path / "plain.nxt").read_bytes()


def test_a_masked_recurrent_layer_becomes_plain():
    torch.manual_seed(0)
    model = nn.LSTM(4, 6)
    expected_names = list(model.state_dict())
    prune.l1_unstructured(model, "weight_hh_l0", amount=0.5)
    parametrizations.weight_norm(model, "weight_ih_l0")
    x = torch.randn(5, 2, 4)
    small = duplicate(model)
    assert list(small.state_dict()) == expected_names
    assert torch.equal(small.weight_hh_l0, model.weight_hh_l0)
    assert torch.equal(small.weight_ih_l0, model.weight_ih_l0)
    assert all(a is b for a, b in zip(small._flat_weights, small.parameters(), strict=True))
    assert output(small, x)[0].shape == (5, 2, 6)


class Symmetric(nn.Module):
    def forward(self, x):
        return (x + x.T) / 2


def test_what_a_network_computes_in_its_own_way_is_named_with_the_remedy():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    parametrizations.weight_norm(model[1])
    task = Task(model, calibration=[torch.randn(2, 8)])
    small, record = Quantize(bits=8)(model, task)
    assert [(change.path, change.what) for change in record.skipped] == [("0.weight", "left in float")]
    assert "Symmetric computes it from other parameters" in record.skipped[0].why
    assert "remove_parametrizations(layer, 'weight')" in record.skipped[0].why
    assert computed(small[0])
    assert not computed(small[1])
    with pytest.raises(LayerError, match=r"weight of '0' is computed .*remove_parametrizations"):
        Quantize(bits=8, layers="0")(model, task)


def test_two_parametrizations_of_one_layer_end_one_by_one():
    model = nn.Sequential(nn.Linear(8, 8))
    parametrizations.weight_norm(model[0])
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    x = torch.randn(2, 8)
    small = duplicate(model)
    assert torch.allclose(output(small, x), output(model, x))
    assert parametrize.is_parametrized(model[0], "weight")
    assert not parametrize.is_parametrized(small[0], "weight")
    assert parametrize.is_parametrized(small[0], "bias")
