"""Small networks for the tests of channel pruning, one for each way in which channels can depend on each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """A stem and two blocks whose sums couple three convolutions; the second shortcut is a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + x)
        x = functional.relu(self.bn3(self.conv3(x)) + self.short(x))
        return self.fc(x.mean((2, 3)))


class Depthwise(nn.Module):
    """MobileNetV2's inverted residual: widen, filter each channel alone, narrow, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project, self.bn3 = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 16, 3, groups=8)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = functional.relu6(self.bn1(self.expand(x)))
        y = functional.relu6(self.bn2(self.depthwise(y)))
        x = functional.relu(self.twice(x + self.bn3(self.project(y))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """DenseNet: every layer reads the channels of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.fc = nn.Linear(18 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        return self.fc(functional.adaptive_max_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """ResNeXt: a convolution in four groups between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, groups=4), nn.BatchNorm2d(24)
        self.conv3 = nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn2(self.conv2(functional.relu(self.conv1(x)))))
        return self.fc(functional.relu(self.conv3(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """ShuffleNetV2: half of the channels pass, then both halves are shuffled, with sizes read from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = functional.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([first, functional.relu(self.branch(second))], 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.fc(x.mean((2, 3)))


class Permuted(nn.Module):
    """A permute and a flatten before the Linear: its columns are not in the order of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 7, 3), nn.Linear(7 * 6 * 6, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x)).permute(0, 2, 3, 1)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class Literal(nn.Module):
    """Writes the size of the flattened activation as a number; fc1 behind it can still be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 4, 3), nn.Linear(144, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(functional.relu(self.conv(x)).view(-1, 144))))


class Recurrent(nn.Module):
    """An LSTM or GRU of two layers over the rows of the image."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(24, 10, num_layers=2, batch_first=True, **options)  # type: ignore[arg-type]
        width = (options.get("proj_size") or 10) * (2 if options.get("bidirectional") else 1)
        self.fc = nn.Linear(int(width), 5)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x.transpose(1, 2).flatten(2))[0].mean(1))


class Steps(nn.Module):
    """An LSTM cell in a loop, its first state made in forward; the last state is read too."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.LSTMCell(24, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(2)
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        assert state is not None
        return self.fc(state[0] * torch.sigmoid(state[1]))


class Gates(nn.Module):
    """Squeeze and excitation, PReLU, GLU, instance norm, a transposed convolution and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 12, 3), nn.PReLU(12)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.norm, self.up = nn.InstanceNorm2d(12), nn.ConvTranspose2d(12, 16, 2)
        self.deep = nn.ConvTranspose2d(8, 8, 2, groups=8)
        self.last, self.fc = nn.Conv2d(8, 12, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3))))))
        x = self.norm(x * gate[:, :, None, None])
        x = functional.interpolate(functional.glu(self.up(x), dim=1), scale_factor=2)
        x = functional.pixel_shuffle(self.last(self.deep(x)), 2)
        return self.fc(x.mean((2, 3)))


class Padded(nn.Module):
    """ResNet's option A: the shortcut is filled up with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.conv(x) + functional.pad(x, (0, 0, 0, 0, 4, 4)))
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """A vision transformer without norms before its first layer: class token, positions, torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 5, 16))
        self.mix = nn.Linear(16, 12)
        self.encoder = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.fc(self.encoder(self.mix(x))[:, 0])


class Tied(nn.Module):
    """A word table that is the last layer too, between them one hidden layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, 12), nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        for _ in range(2):
            x = x + self.down(functional.relu(self.up(x)))
        return self.head(x.mean(1))


class Strange(nn.Module):
    """An operator nobody knows between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(torch.fft.ifft(torch.fft.fft(self.conv1(x), dim=1), dim=1).real))
        return self.fc(functional.relu(self.conv3(x)).mean((2, 3)))


def image_nets() -> dict[str, nn.Module]:
    """All networks that take images [batch, 3, 8, 8], with random weights and random batch norms, in eval mode."""
    torch.manual_seed(0)
    nets = {
        "residual": Residual(),
        "depthwise": Depthwise(),
        "dense": Dense(),
        "grouped": Grouped(),
        "shuffled": Shuffled(),
        "permuted": Permuted(),
        "lstm": Recurrent(nn.LSTM),
        "gru": Recurrent(nn.GRU),
        "rnn": Recurrent(nn.RNN),
        "bidirectional lstm": Recurrent(nn.LSTM, bidirectional=True),
        "bidirectional gru": Recurrent(nn.GRU, bidirectional=True),
        "projected lstm": Recurrent(nn.LSTM, proj_size=6),
        "steps": Steps(),
        "gates": Gates(),
        "padded": Padded(),
        "tokens": Tokens(),
        "literal": Literal(),
        "strange": Strange(),
    }
    for net in nets.values():
        for module in net.eval().modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor)  # type: ignore[arg-type]
    return nets
