"""Residual networks for small images, with batch norm and 1x1 projections where a stage changes the shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the input itself, or its 1x1 projection where the shape changes.

    Shapes: [batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride], rounded up.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, one stage of residual blocks for each width, and the mean over what is left of the image.

    Each stage after the first halves the image. Three blocks a stage are ResNet-20 (2 * 3 * 3 + 2 layers), one block a
    stage is ResNet-8. `stem_stride=2` halves the image at once, for a quarter of the work.
    Shapes: images [batch, in_channels, height, width], any size -> scores [batch, classes].
    Source: He, Zhang, Ren, Sun 2016, Deep Residual Learning for Image Recognition, section 4.2.
    Deviation: projections (their option B) instead of shortcuts padded with zeros (their option A).
    """

    def __init__(
        self,
        *,
        depth_per_stage: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 1,
        classes: int = 10,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], kernel_size=3, stride=stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        inputs = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential()
        for stage, (before, width) in enumerate(zip(inputs, widths, strict=True)):
            first = Block(before, width, stride=1 if stage == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(width, width) for _ in range(depth_per_stage - 1))))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(images)))
        x = self.pool(self.stages(x))
        return self.fc(x.flatten(1))
