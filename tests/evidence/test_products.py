"""Products of a forward pass, against what the layers gave: matrix times inputs is the output, for every kind that has one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from enxuto.evidence.products import Product, watch
from enxuto.sites import Site, sites

images = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
wide = images.to(memory_format=torch.channels_last)

LAYERS: dict[str, tuple[nn.Module, Tensor, int]] = {  # the layer, its input, and the axis of its output's channels
    "linear": (nn.Linear(8, 3, bias=False), images, -1),
    "linear with bias, one vector": (nn.Linear(8, 3), images[0, 0, 0], -1),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=2, bias=False), images[:, :, 0], 1),
    "conv2d, strided and dilated": (nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(0, 1), dilation=(1, 2), bias=False), images, 1),
    "conv2d in groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), images, 1),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), images, 1),
    "padded by reflection": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False), images, 1),
    "channels last": (nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last), wide, 1),
    "no batch": (nn.Conv2d(4, 6, 3, bias=False), images[0], 0),
    "conv3d": (nn.Conv3d(2, 3, 2, bias=False), images.view(1, 2, 4, 9, 8), 1),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False), images, 1),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, (3, 2), groups=2, stride=(2, 3), dilation=(1, 2), bias=False), images, 1),
    "transposed, cut at its edges": (nn.ConvTranspose1d(4, 6, 2, padding=2, bias=False), images[:, :, 0], 1),
}


def seen(model: nn.Module, *batches: object) -> tuple[list[tuple[Product, Tensor]], dict[str, str]]:
    found: list[tuple[Product, Tensor]] = []
    keys = [weight.key for weight in sites(model)]
    otherwise = watch(model, batches, keys, lambda product: found.append((product, product.inputs(torch.arange(product.count)))))
    return found, otherwise


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_times_the_inputs_is_the_output(name: str) -> None:
    layer, given, axis = LAYERS[name]
    [(product, inputs)], otherwise = seen(layer, given)
    matrix = Site("", "weight", layer).matrix()
    made = torch.einsum("gni,goi->ngo", inputs, matrix.view(product.groups, -1, product.width)).flatten(1)
    with torch.no_grad():
        outputs = layer(given).movedim(axis, -1) - (layer.bias if layer.bias is not None else 0)
    torch.testing.assert_close(made, outputs.reshape(product.count, -1))
    assert (product.key, product.start, product.stop, otherwise) == ("weight", 0, len(matrix), {})
    assert torch.equal(Site("", "weight", layer).shaped(matrix), layer.weight)


def test_a_bilinear_layer_meets_all_products_of_its_two_inputs() -> None:
    layer, given = nn.Bilinear(3, 4, 5, bias=False), (torch.randn(2, 3), torch.randn(2, 4))
    [(_, inputs)], _ = seen(layer, given)
    torch.testing.assert_close(inputs[0] @ Site("", "weight", layer).matrix().T, layer(*given).detach())


def test_recurrent_layers_show_each_step_also_packed_and_onednn_stays_as_it_was() -> None:
    layer, given = nn.LSTM(5, 4, num_layers=2, bidirectional=True, proj_size=2, batch_first=True), torch.randn(2, 3, 5)
    found, otherwise = seen(layer, given)
    rows = {key: sum(p.count for p, _ in found if p.key == key) for key in dict(layer.named_parameters()) if "weight" in key}
    assert set(rows.values()) == {6}, "two samples of three steps each"
    assert (otherwise, torch.backends.mkldnn.enabled) == ({}, True)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 5), torch.randn(1, 5)])
    found, _ = seen(nn.GRU(5, 4), (packed,))
    assert sum(product.count for product, _ in found if product.key == "weight_hh_l0") == 4


def test_attention_shows_all_projections_each_with_its_own_inputs() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    found, otherwise = seen(layer, (query, key, value))
    assert [(p.key, p.start, p.stop, p.count) for p, _ in found] == [
        ("in_proj_weight", 0, 8, 6),
        ("in_proj_weight", 8, 16, 10),
        ("in_proj_weight", 16, 24, 10),
        ("out_proj.weight", 0, 8, 6),
    ]
    for (_, inputs), given in zip(found, (query, key, value), strict=False):
        assert torch.equal(inputs[0].view(2, -1, 8).transpose(0, 1).reshape(-1, 8), given.transpose(0, 1).reshape(-1, 8)) or (
            torch.equal(inputs[0].view(-1, 2, 8).transpose(0, 1).reshape(-1, 8), given.reshape(-1, 8))
        )
    assert not otherwise


class Past(nn.Module):
    """Reads a layer's weight itself, a table's rows, and a weight in a way that is no product with its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.odd = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return nn.functional.linear(x, self.fc.weight) + self.odd.weight.sum() + x @ self.odd.weight


def test_whoever_reads_a_weight_is_seen_and_what_is_no_product_is_named() -> None:
    found, otherwise = seen(Past(), torch.tensor([[1, 2, 3]]))
    assert [product.key for product, _ in found] == ["fc.weight"]
    assert "rows" in otherwise["table.weight"]
    assert "aten." in otherwise["odd.weight"]
    assert "fc.weight" not in otherwise


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


@pytest.mark.parametrize("key", ["embed.weight", "head.weight"])
def test_tied_weights_go_by_the_name_that_was_asked_for(key: str) -> None:
    found: list[Product] = []
    watch(Tied(), [torch.tensor([[1, 2, 3]])], [key], found.append)
    assert [(product.key, product.stop) for product in found] == [(key, 9)]


def test_weights_in_one_storage_and_weights_kept_turned_are_told_apart() -> None:
    model, given = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)), torch.randn(5, 4)
    flat = torch.randn(42)
    model[0].weight = nn.Parameter(flat[:24].view(4, 6).t())
    model[1].weight = nn.Parameter(flat[24:].view(3, 6))
    found, otherwise = seen(model, given)
    assert [(product.key, product.start, product.stop) for product, _ in found] == [("0.weight", 0, 6), ("1.weight", 0, 3)]
    assert torch.equal(found[0][1][0], given)
    assert not otherwise


class Mirror(nn.Module):
    """A decoder that reads the weights of the encoder the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(36, 4), nn.Conv2d(1, 1, 3, bias=False)
        self.up = nn.ConvTranspose2d(1, 1, 3, bias=False)
        self.up.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        code = self.fc(self.conv(x).flatten(1))
        return self.up((code @ self.fc.weight).view(-1, 1, 6, 6))


def test_a_weight_that_is_also_read_the_other_way_round_is_named() -> None:
    found, otherwise = seen(Mirror(), torch.randn(2, 1, 8, 8))
    assert [product.key for product, _ in found] == ["conv.weight", "fc.weight"]
    assert "aten.mm" in otherwise["fc.weight"]
    assert "aten.convolution" in otherwise["conv.weight"]
