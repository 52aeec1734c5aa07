"""The two LeNets on which most papers about compression report: one fully connected, one convolutional."""

from __future__ import annotations

from torch import Tensor, nn

from enxuto.errors import ShapeError


class LeNet300100(nn.Module):
    """Three fully connected layers, 300 and 100 wide: 266,610 parameters at 28 x 28, nearly all of them in `fc1`.

    Shapes: images [batch, in_channels, image_size, image_size] -> scores [batch, classes].
    Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition, section III.C.
    Deviation: ReLU instead of tanh, as in the papers about compression.
    """

    def __init__(self, *, image_size: int = 28, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * image_size * image_size, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        x = self.relu1(self.fc1(x))
        x = self.relu2(self.fc2(x))
        return self.fc3(x)


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (20-50-500-10): two convolutions and two fully connected layers, 431,080 parameters at 28 x 28.

    Shapes: images [batch, in_channels, image_size, image_size] -> scores [batch, classes]; image_size at least 4.
    Source: Jia et al. 2014, Caffe: Convolutional Architecture for Fast Feature Embedding; its examples/mnist/lenet.
    Deviation: a ReLU after each convolution; zero padding below 16 pixels, where unpadded images would vanish.
    Raises: ShapeError when the image is smaller than 4 pixels.
    """

    def __init__(self, *, image_size: int = 28, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        if image_size < 4:
            raise ShapeError(f"image_size={image_size} leaves nothing behind the two pools of LeNet-5; use 4 or more.")
        padding = 0 if image_size >= 16 else 2
        side = ((image_size + 2 * padding - 4) // 2 + 2 * padding - 4) // 2  # of the image behind the second pool
        self.conv1 = nn.Conv2d(in_channels, 20, kernel_size=5, padding=padding)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5, padding=padding)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(images)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(x.flatten(1)))
        return self.fc2(x)
