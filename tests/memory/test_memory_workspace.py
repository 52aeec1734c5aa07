"""What operators need inside themselves is foreseen on networks that no rule was read off."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enxuto import memory


class UNet(nn.Module):
    """Two transposed convolutions, and a map that waits beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.low = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 16, 3, stride=2, padding=1, output_padding=1)
        self.out = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        return self.out(torch.cat([self.up(self.low(high)), high], 1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


class Recurrent(nn.Module):
    """The second layer has more inputs than hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, 2, bidirectional=True, dropout=0.2, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0].mean(1))


def upsampling() -> nn.Module:
    parts = nn.Conv2d(3, 64, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(16, 3, 1), nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(*parts)


Case = tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], Callable[[Any, Any], Tensor]]
CASES: dict[str, Case] = {
    "unet": (UNet, (3, 20, 20), (16, 40, 40), F.mse_loss),
    "upsampling": (upsampling, (3, 12, 12), (3, 48, 48), F.smooth_l1_loss),
    "attention": (Attention, (40, 64), (10,), F.cross_entropy),
    "lstm": (Recurrent, (20, 16), (10,), F.cross_entropy),
    "huber": (lambda: nn.Linear(30, 90), (30,), (90,), F.huber_loss),
}


@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("name", CASES)
def test_a_network_never_seen_before_is_foreseen(name: str, size: int) -> None:
    make, inputs, targets, loss = CASES[name]
    model, x, y = make(), torch.randn(size, *inputs), torch.rand(size, *targets)
    foreseen, found = memory.predict(model, x), memory.record(model, x)
    assert foreseen.predicted
    assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.03)
    step = {"loss": loss, "optimizer": torch.optim.Adam}
    foreseen, found = memory.predict(model, (x, y), **step), memory.record(model, (x, y), **step)
    assert foreseen.predicted
    assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)


def test_a_transposed_convolution_of_one_sample_is_foreseen() -> None:
    model, x = nn.ConvTranspose2d(24, 16, 3, stride=2), torch.randn(1, 24, 16, 16)
    step = {"loss": lambda y, _: y.sum()}
    assert memory.predict(model, x).peak_bytes == pytest.approx(memory.record(model, x).peak_bytes, rel=0.03)
    found = memory.record(model, (x, x), **step).peak_bytes
    assert memory.predict(model, (x, x), **step).peak_bytes == pytest.approx(found, rel=0.05)


CONVOLUTIONS = {
    "few to few": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "few to many": lambda: nn.Conv2d(6, 20, 5),
    "many to few": lambda: nn.Conv2d(20, 6, 5, stride=2),
    "many weights": lambda: nn.Conv2d(256, 256, 3, stride=4),
    "few, 1 x 1": lambda: nn.Conv2d(8, 24, 1),
    "transposed to one": lambda: nn.ConvTranspose2d(32, 1, 3, padding=1),
    "transposed without bias": lambda: nn.ConvTranspose2d(32, 3, 3, padding=1, bias=False),
    "transposed with a stride": lambda: nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1),
    "transposed to few": lambda: nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_alone_is_foreseen(name: str, precision: Any) -> None:
    """Each has layouts of its own, and nothing beside it that would hide an error."""
    layer = CONVOLUTIONS[name]()
    x = torch.randn(8, layer.in_channels, 20, 20)
    step = {"loss": lambda y, _: y.square().sum(), "optimizer": torch.optim.SGD, "precision": precision}
    foreseen, found = memory.predict(layer, x, precision=precision), memory.record(layer, x, precision=precision)
    assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.03)
    foreseen, found = memory.predict(layer, (x, x), **step), memory.record(layer, (x, x), **step)
    assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)


def random_network(seed: int) -> tuple[nn.Module, int]:
    """A small convolutional network as anybody might write one, and the channels of its images."""
    choose = random.Random(seed)
    first = channels = choose.choice([1, 3, 4])
    layers: list[nn.Module] = []
    for _ in range(choose.randint(2, 4)):
        out, size, stride = choose.choice([4, 6, 12, 16, 20, 32, 48]), choose.choice([1, 3, 5, 7]), choose.choice([1, 2])
        kinds = (
            nn.Conv2d(channels, out, size, stride, size // 2, bias=choose.random() < 0.5),
            nn.Conv2d(channels, out, 3, padding=2, dilation=2),
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels),
            nn.ConvTranspose2d(channels, out, 3, stride, 1),
        )
        layers.append(choose.choice(kinds))
        channels = getattr(layers[-1], "out_channels", out)
        layers += [nn.BatchNorm2d(channels)] * choose.randint(0, 1) + [nn.ReLU(inplace=choose.random() < 0.5)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 64), nn.Linear(64, 10)), first


@pytest.mark.parametrize("seed", range(5))
def test_a_random_network_is_foreseen_in_bf16(seed: int) -> None:
    model, channels = random_network(seed)
    x, y = torch.randn(11, channels, 14, 14), torch.randint(10, (11,))
    for batch, step in ((x, {}), ((x, y), {"loss": F.cross_entropy, "optimizer": torch.optim.SGD})):
        foreseen = memory.predict(model, batch, precision="bf16-mixed", **step)
        found = memory.record(model, batch, precision="bf16-mixed", **step)
        assert foreseen.peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
        assert foreseen.unsure_bytes == 0


def test_a_weight_that_a_hook_computes_is_followed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is deprecated
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 256)), nn.Tanh(), nn.Linear(256, 10))
    batch = torch.randn(4, 64), torch.randint(10, (4,))
    foreseen = memory.predict(model, batch, loss=F.cross_entropy)
    assert foreseen.predicted
    assert foreseen.peak_bytes == pytest.approx(memory.record(model, batch, loss=F.cross_entropy).peak_bytes, rel=0.05)
