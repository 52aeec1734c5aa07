"""The reference networks: shapes at both image sizes, the published parameter counts, and that torch exports them."""

import warnings

import pytest
import torch
from torch import nn

from enxuto import zoo
from enxuto.errors import ShapeError, TaskError
from enxuto.zoo.mobilenet import STAGES


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize(("image_size", "in_channels", "classes"), [(28, 1, 10), (8, 1, 10), (28, 3, 7)])
def test_every_network_gives_one_score_per_class(name, image_size, in_channels, classes):
    model = zoo.build(name, image_size=image_size, in_channels=in_channels, classes=classes).eval()
    with torch.no_grad():
        assert model(torch.randn(2, in_channels, image_size, image_size)).shape == (2, classes)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (zoo.LeNet300100, 266_610),  # Han et al. 2015, table 1: 267K
        (zoo.LeNet5, 431_080),  # the same table: 431K
        (lambda: zoo.ResNet(in_channels=3), 272_474),  # He et al. 2016, table 6: 0.27M, with projections
        (lambda: zoo.MobileNetV2(in_channels=3, classes=1000, stem_stride=2), 3_504_872),  # Sandler et al.: 3.4M
    ],
)
def test_a_network_has_as_many_parameters_as_its_paper_says(model, parameters):
    assert count(model()) == parameters


@pytest.mark.parametrize("image_size", [4, 5, 15, 16, 17, 32])
def test_lenet_5_fits_images_of_any_size_from_4_pixels(image_size):
    assert zoo.LeNet5(image_size=image_size)(torch.randn(1, 1, image_size, image_size)).shape == (1, 10)


def test_lenet_5_refuses_an_image_that_would_vanish():
    with pytest.raises(ShapeError, match="image_size=3"):
        zoo.LeNet5(image_size=3)


def test_the_demo_network_has_two_projection_shortcuts_and_batch_norm():
    kinds = [type(module) for _, module in zoo.build("resnet-8").named_modules()]
    shortcuts = [m for p, m in zoo.build("resnet-8").named_modules() if p.endswith("shortcut")]
    assert [isinstance(shortcut, nn.Sequential) for shortcut in shortcuts] == [False, True, True]
    assert nn.BatchNorm2d in kinds


def test_mobilenet_takes_colour_images_of_224_pixels():
    model = zoo.MobileNetV2(width=0.25, in_channels=3, classes=5, stem_stride=2).eval()
    with torch.no_grad():
        assert model.blocks(model.stem(torch.randn(1, 3, 224, 224))).shape[-2:] == (7, 7)
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 5)


def test_a_transformer_survives_a_narrower_feed_forward_network():
    model = zoo.TransformerEncoder()
    block = model.blocks[0]
    block.fc1, block.fc2 = nn.Linear(64, 24), nn.Linear(24, 64)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_a_transformer_refuses_sizes_that_do_not_divide():
    with pytest.raises(ShapeError, match=r"patch=5 .* 28 pixels .* \[1, 2, 4, 7, 14, 28\]"):
        zoo.TransformerEncoder(patch=5)
    with pytest.raises(ShapeError, match="heads=3"):
        zoo.TransformerEncoder(heads=3)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_network_takes_layers_and_directions(name, layers, bidirectional):
    model = zoo.build(name, hidden=12, layers=layers, bidirectional=bidirectional)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_network_exports_with_a_free_batch_size_and_keeps_its_outputs(name):
    fewer = {"mobilenet-v2": {"stages": STAGES[:3]}, "resnet-20": {"depth_per_stage": 2}}  # the same kinds of layers
    model = zoo.build(name, image_size=8, **fewer.get(name, {})).eval()
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attributes self.(gru|lstm)._flat_weights")  # torch's own
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        more = torch.randn(5, 1, 8, 8)
        torch.testing.assert_close(program.module()(more), model(more))


def test_an_unknown_network_or_size_is_refused_with_what_there_is():
    with pytest.raises(TaskError, match=r"'alexnet' .* lenet-300-100, lenet-5"):
        zoo.build("alexnet")
    with pytest.raises(TaskError, match=r"depth=3 is no argument of gru; it takes .*hidden"):
        zoo.build("gru", depth=3)
