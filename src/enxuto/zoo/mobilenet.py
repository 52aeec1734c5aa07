"""MobileNetV2: depthwise convolutions between a 1x1 that widens and a 1x1 that narrows again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""One row a stage: expansion of each block, channels it gives, blocks, stride of the first (the paper's table 2)."""


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, unless `linear`, ReLU6; `groups=inputs` makes it depthwise."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        layers["norm"] = nn.BatchNorm2d(outputs)
        if not linear:
            layers["relu"] = nn.ReLU6()
        super().__init__(layers)


class InvertedResidual(nn.Module):
    """Widen (1x1), filter each channel alone (3x3 depthwise), narrow linearly (1x1), add the input if it fits.

    Shapes: [batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride], rounded up.
    """

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel=3, stride=stride, groups=inner)
        self.project = ConvNorm(inner, outputs, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals, a 1x1 to 1280 channels, and the mean over what is left of the image.

    The defaults suit 28 x 28 grey images. The network of the paper, for 224 x 224 colour images, is
    `MobileNetV2(in_channels=3, classes=1000, stem_stride=2)`: 3,504,872 parameters. `width` multiplies all channels.
    Shapes: images [batch, in_channels, height, width], any size -> scores [batch, classes].
    Source: Sandler, Howard, Zhu, Zhmoginov, Chen 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, table 2.
    Deviation: no dropout before the last layer.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        in_channels: int = 1,
        classes: int = 10,
        stem_stride: int = 1,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        head_channels: int = 1280,
    ) -> None:
        super().__init__()
        channels = multiple_of_8(32 * width)
        self.stem = ConvNorm(in_channels, channels, kernel=3, stride=stem_stride)
        self.blocks = nn.Sequential()
        for expansion, outputs, count, first_stride in stages:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                after = multiple_of_8(outputs * width)
                self.blocks.append(InvertedResidual(channels, after, expansion=expansion, stride=stride))
                channels = after
        head = multiple_of_8(head_channels * max(1.0, width))  # the paper: a narrow network keeps its wide head
        self.head = ConvNorm(channels, head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(head, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(images)))
        return self.fc(self.pool(x).flatten(1))


def multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, never more than 10 % below what was asked.

    >>> multiple_of_8(32), multiple_of_8(4.8), multiple_of_8(18), multiple_of_8(11)
    (32, 8, 24, 16)
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
