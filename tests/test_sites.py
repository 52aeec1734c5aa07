"""Where weights are: once each, with all their places, in the order of the network, plain, coded, rehearsed or thin."""

import pytest
import torch
from torch import nn

from enxuto.errors import LayerError
from enxuto.forms import Ranks
from enxuto.layers import Affine, CodedTensor, Rehearsal, Table, code_
from enxuto.sites import Site, first_names, left_in_float, sites
from enxuto.surgery import borrowed, duplicate, to_float
from enxuto.thin import thinned
from toys import Mlp, Tied, seeded


class Many(nn.Module):
    """A layer of every kind that has weights in its own way; two of them are tied to others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.embed, self.lstm = nn.LayerNorm(4), nn.Embedding(7, 4), nn.LSTM(4, 3, bidirectional=True)
        self.attention, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 7, bias=False)
        self.grouped, self.back = nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(4, 6, 3, groups=2)
        self.again, self.thin = nn.Linear(4, 4), thinned("", nn.Linear(8, 8), Ranks("svd", (2,)), None).module
        self.head.weight, self.again.weight = self.embed.weight, self.attention.out_proj.weight


PLACES = {
    "embed.weight": ["head.weight"],
    "lstm.weight_ih_l0": [],
    "lstm.weight_hh_l0": [],
    "lstm.weight_ih_l0_reverse": [],
    "lstm.weight_hh_l0_reverse": [],
    "attention.in_proj_weight": [],
    "attention.out_proj.weight": ["again.weight"],
    "grouped.weight": [],
    "back.weight": [],
    "thin.down.weight": [],
    "thin.up.weight": [],
}


def coded(model: nn.Module) -> nn.Module:
    for site in sites(model):
        site.code_(Affine(8).encode(site.read()))
    return model


def rehearsed(model: nn.Module) -> nn.Module:
    assert all(isinstance(site.rehearsal_(), Rehearsal) for site in sites(model))
    return model


@pytest.mark.parametrize("made", [lambda model: model, coded, rehearsed, duplicate, borrowed, to_float])
def test_each_weight_is_one_site_with_all_its_places_in_the_order_of_the_network(made):
    model = made(seeded(Many))
    assert {site.key: [place.key for place in site.tied] for site in sites(model)} == PLACES
    assert [site.key for site in sites(model)] == list(PLACES)
    for site in sites(model):
        assert all(place.tensor is site.tensor for place in site.places)
        assert site.shape == site.read().shape


def test_a_site_goes_by_the_first_layer_that_was_chosen_and_knows_the_others():
    head, mix = sites(seeded(Many), ["head", "again"])
    assert [place.key for place in head.places] == ["head.weight", "embed.weight"]
    assert [place.key for place in mix.places] == ["again.weight", "attention.out_proj.weight"]
    assert head.looked_up
    assert not mix.looked_up


def test_where_nothing_has_weights_there_are_none_and_to_choose_some_is_refused():
    model = nn.Sequential(nn.ReLU())
    assert sites(model) == []
    with pytest.raises(LayerError):
        sites(model, "*")


def test_the_model_is_walked_once_and_not_for_each_weight(monkeypatch):
    walks, walk = [], nn.Module.named_modules
    monkeypatch.setattr(
        nn.Module, "named_modules", lambda self, *given, **named: walks.append(self) or walk(self, *given, **named)
    )
    counts = []
    for depth in (2, 20):
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))
        walks.clear()
        for site in sites(model):
            site.code_(Affine(8).encode(site.read()))
        counts.append(sum(each is model for each in walks))
    assert counts == [1, 1]


@pytest.mark.parametrize("site", sites(seeded(Many)), ids=lambda site: site.key)
def test_a_matrix_goes_back_to_where_it_was_and_has_a_row_for_each_output(site):
    matrix = site.matrix()
    assert torch.equal(site.shaped(matrix), site.read())
    transposed = isinstance(site.module, nn.ConvTranspose1d)
    assert len(matrix) == (site.module.out_channels if transposed else len(site.read()))
    assert matrix.numel() == site.read().numel()


def test_a_row_of_a_transposed_convolution_in_groups_is_what_makes_one_output():
    layer, channel = nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), 4
    matrix = Site("", "weight", layer).matrix()
    matrix[channel] = 0
    Site("", "weight", layer).write_(Site("", "weight", layer).shaped(matrix))
    zero = (layer(torch.randn(1, 4, 5)) == 0).all(2)[0]
    assert zero.nonzero().flatten().tolist() == [channel]


@pytest.mark.parametrize("grid", [None, Affine(8), Table(5)], ids=str)
def test_what_is_written_is_read_and_ties_hold(grid):
    model = seeded(Tied)
    weight = sites(model)[0]
    if grid:
        weight.code_(grid.encode(weight.read()))
        assert isinstance(weight.tensor, CodedTensor)
    values = weight.read().clone()
    values[3] = 0
    weight.write_(values)
    assert torch.equal(weight.read(), values)
    assert torch.equal(model.head.weight, values)
    assert len(sites(model)[0].places) == 2


def test_rehearsals_are_made_once_for_all_names():
    model = seeded(Tied)
    first = [site.rehearsal_() for site in sites(model)]
    assert all(site.rehearsal_() is leaf for site, leaf in zip(sites(model), first, strict=True))
    assert model.head.coded["weight"] is model.embed.coded["weight"] is first[0]


def test_every_name_leads_to_the_first():
    names = first_names(seeded(Tied).named_parameters(remove_duplicate=False))
    assert names["head.weight"] == names["embed.weight"] == "embed.weight"
    assert names["mix.bias"] == "mix.bias"


def test_parameters_that_no_layer_kind_covers_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.table, self.shift = nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))

    model = nn.Sequential(Odd(), nn.MultiheadAttention(4, 2, add_bias_kv=True))
    assert [change.path for change in left_in_float(model)] == ["0.table", "1.bias_k", "1.bias_v"]
    assert [change.path for change in left_in_float(model, "1")] == ["1.bias_k", "1.bias_v"]
    assert not list(left_in_float(seeded(Mlp)))


def test_a_weight_of_a_model_that_is_one_layer_has_a_key():
    layer = nn.Linear(3, 2)
    assert [weight.key for weight in sites(layer)] == ["weight"]
    code_(layer, "weight", Affine(4).encode(layer.weight))
    assert [weight.key for weight in sites(layer)] == ["weight"]
    assert torch.equal(to_float(layer).weight, layer.weight)
