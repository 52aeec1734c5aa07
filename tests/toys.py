"""Tiny networks with trained-looking weights, and the questions that many tests ask of a model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from enxuto.task import Task


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class ResidualCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x))))))
        return self.fc(x.mean(dim=(2, 3)))


class Block(nn.Module):
    """One transformer block between an embedding of numbers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc1, self.fc2, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(dim=1))


class Tied(nn.Module):
    """Tokens in, tokens out, with one matrix for both."""

    def __init__(self, tokens: int = 64, width: int = 16) -> None:
        super().__init__()
        self.embed, self.mix, self.head = (
            nn.Embedding(tokens, width),
            nn.Linear(width, width),
            nn.Linear(width, tokens, bias=False),
        )
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.embed(x))))


def seeded(kind: type[nn.Module], *arguments: object, seed: int = 0) -> nn.Module:
    """A network whose norms have seen data: statistics, gains and shifts that are not 0 and 1."""
    torch.manual_seed(seed)
    model = kind(*arguments)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


INPUTS = {Mlp: (8, 12), ResidualCnn: (4, 3, 8, 8), Block: (4, 7, 6)}


def inputs(kind: type[nn.Module]) -> Tensor:
    return torch.randn(INPUTS[kind], generator=torch.Generator().manual_seed(5))


def task_of(kind: type[nn.Module], **more: object) -> Task:
    return Task(seeded(kind), calibration=[inputs(kind)], **more)  # type: ignore[arg-type]


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def photograph(model: nn.Module) -> tuple[list[tuple[str, type, bool]], dict[str, Tensor]]:
    """Everything that a step must leave alone in its input: structure, modes and the bits of every tensor."""
    modules = [(path, type(module), module.training) for path, module in model.named_modules()]
    return modules, copy.deepcopy(model.state_dict())


def unchanged(model: nn.Module, before: tuple[list[tuple[str, type, bool]], dict[str, Tensor]]) -> bool:
    modules, state = photograph(model)
    same = modules == before[0] and list(state) == list(before[1])
    return same and all(torch.equal(tensor, before[1][name]) for name, tensor in state.items())
