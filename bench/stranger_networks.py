"""Networks that nobody here designed: drawn from a grammar of what people write, each from its number alone.

A network is a stem, a few blocks and a head of one of three kinds (images, tokens, vectors); some get a habit on top, such as
pruning masks, features taken by a hook or a trace by torch.fx. The same number gives the same network in every process.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

IMAGE, LENGTH, VOCABULARY = 12, 9, 40
ROWS = 6  # samples in a batch


@dataclass(frozen=True, eq=False)
class Stranger:
    """One network, inputs it takes, and what is unusual about it."""

    number: int
    model: nn.Module
    batches: list[Any]
    words: str


# ---- images: blocks from [batch, channels, height, width] to the same --------------------------------------------------------


class SameConv(nn.Conv2d):
    """A convolution that pads by itself, as networks that came from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 2, 0, 2)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MyConv(nn.Conv2d):
    """A subclass that changes nothing."""


class Residual(nn.Module):
    def __init__(self, c: int, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c + 4, 3, padding=1, bias=False), norm(c + 4)
        self.conv2, self.bn2 = nn.Conv2d(c + 4, c, 3, padding=1, bias=False), norm(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Excite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        wide = 3 * c
        self.body = nn.Sequential(
            *(nn.Conv2d(c, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, c, 1, bias=False), nn.BatchNorm2d(c)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Shuffle(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch = nn.Conv2d(c // 2, c // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class UpAndDown(nn.Module):
    def __init__(self, c: int, groups: int, wide: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(c, wide, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(wide, c, 2, stride=2, groups=groups)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.up(F.relu(self.down(x))))) + x


class Gate(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.both = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = torch.split(self.both(x), x.shape[1], dim=1)
        return value * gate.sigmoid()


class Dense(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.grow, self.back = nn.Conv2d(c, 6, 3, padding=1), nn.Conv2d(c + 6, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.cat([x, F.leaky_relu(self.grow(x))], 1))


class Normed(nn.Module):
    """ConvNeXt: layer norm over channels, which stand last for it."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 5, padding=2, groups=c), nn.LayerNorm(c)
        self.wide, self.narrow = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.scale = nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class Reader(nn.Module):
    """A forward that asks its layers for numbers and dtypes."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x.to(self.conv.weight.dtype)))
        return y.view(-1, self.bn.num_features, y.shape[2], y.shape[3])[:, : self.conv.out_channels]


class Pooled(nn.Module):
    """An image network: a stem, blocks, a pool and one head or several."""

    def __init__(self, blocks: list[nn.Module], c: int, head: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*blocks)
        self.head = head
        self.fc = nn.Linear(4 * c, 10) if head == "flatten" else nn.Linear(c, 10)
        if head in ("two", "dict"):
            self.box = nn.Linear(c, 4)
        if head == "map":
            self.fc = nn.Conv2d(c, 5, 1)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        x = self.blocks(self.stem(x))
        if self.head == "map":
            return self.fc(x)
        if self.head == "flatten":
            return self.fc(F.adaptive_max_pool2d(x, 2).flatten(1))
        x = x.mean((2, 3))
        if self.head == "two":
            return self.box(x) + torch.tensor([0.0, 0.0, 100.0, 0.0]), self.fc(x)
        return {"classes": self.fc(x), "box": self.box(x)} if self.head == "dict" else self.fc(x)


def _sized(kind: type[nn.Module], *arguments: Any) -> Callable[[random.Random, int], nn.Module]:
    return lambda chance, c: kind(c, *arguments)


IMAGES: dict[str, Callable[[random.Random, int], nn.Module]] = {
    "residual": _sized(Residual),
    "residual without norm": _sized(Residual, nn.Identity),
    "squeeze and excite": _sized(Excite),
    "inverted residual": _sized(Inverted),
    "shuffled channels": _sized(Shuffle),
    "transposed": lambda chance, c: UpAndDown(c, 1, chance.choice((c, c + 6))),
    "grouped transposed": lambda chance, c: UpAndDown(c, chance.choice((2, c)), chance.choice((c, 2 * c))),
    "split gate": _sized(Gate),
    "concatenated": _sized(Dense),
    "layer norm of channels": _sized(Normed),
    "layers asked in forward": _sized(Reader),
    "subclass that pads": lambda chance, c: nn.Sequential(SameConv(c, c, 3, padding=0, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
    "subclass": lambda chance, c: nn.Sequential(MyConv(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
    "group norm": lambda chance, c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(2, c), nn.SiLU()),
    "instance norm": lambda chance, c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c), nn.Hardswish()),
    "synchronised norm": lambda chance, c: nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.SyncBatchNorm(c), nn.ReLU()),
    "dilated": lambda chance, c: nn.Sequential(nn.Conv2d(c, c, 3, padding=2, dilation=2), nn.PReLU(c)),
    "grouped": lambda chance, c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
    "reflected": lambda chance, c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect"), nn.ELU()),
    "pool and resize": lambda chance, c: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(c, c, 1), nn.Upsample(scale_factor=2)),
}

# ---- tokens: blocks from [batch, length, width] to the same ------------------------------------------------------------------


class MaskedAttention(nn.Module):
    """Scores plus a mask of the most negative number, as model libraries write it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        mask = ones.triu(1) * torch.finfo(x.dtype).min
        heads = [t.unflatten(2, (2, -1)).transpose(1, 2) for t in (self.q(x), self.k(x), self.v(x))]
        scores = heads[0] @ heads[1].transpose(2, 3) / heads[0].shape[-1] ** 0.5 + mask
        return x + self.o((scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))


class CausalBuffer(nn.Module):
    """A mask of minus infinity in a buffer, cut to the length."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("mask", torch.full((32, 32), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        n = x.shape[1]
        return x + self.o(((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5 + self.mask[:n, :n]).softmax(-1) @ v)


class LibraryAttention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(d, 2, batch_first=True), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    def __init__(self, d: int, kind: type[nn.RNNBase], both: bool, layers: int) -> None:
        super().__init__()
        self.rnn = kind(d, d // 2 if both else d, num_layers=layers, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rnn(x)[0]


class FeedForward(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(d), nn.Linear(d, 3 * d), nn.Linear(3 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x))
        return x + self.down(F.gelu(h).to(self.down.weight.dtype))


class Along(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(d, d, 3, padding=1, bias=False), nn.BatchNorm1d(d)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.bn(self.conv(x.transpose(1, 2)))).transpose(1, 2)


class Tokens(nn.Module):
    """A token network: embedding and places, blocks, and a tied, a tagging or a pooled head."""

    def __init__(self, blocks: list[nn.Module], d: int, head: str) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, d), nn.Parameter(0.1 * torch.randn(1, 32, d))
        self.blocks, self.head = nn.ModuleList(blocks), head
        self.out = nn.Linear(d, 6)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens) + self.place[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        if self.head == "tied":
            return F.linear(x, self.embed.weight)
        return self.out(x if self.head == "tags" else x.mean(1))


TOKENS: dict[str, Callable[[random.Random, int], nn.Module]] = {
    "masked attention": _sized(MaskedAttention),
    "causal buffer": _sized(CausalBuffer),
    "MultiheadAttention": _sized(LibraryAttention),
    "TransformerEncoderLayer": lambda chance, d: nn.TransformerEncoderLayer(d, 2, 2 * d, dropout=0.0, batch_first=True),
    "LSTM": lambda chance, d: Recurrent(d, nn.LSTM, chance.random() < 0.5, chance.choice((1, 2))),
    "GRU": lambda chance, d: Recurrent(d, nn.GRU, chance.random() < 0.5, 1),
    "feed-forward": _sized(FeedForward),
    "convolution along": _sized(Along),
}

# ---- vectors: blocks from [batch, width] to the same -------------------------------------------------------------------------


class Skip(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.BatchNorm1d(2 * d)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.bn(self.a(x))))


class Raw(nn.Module):
    """Parameters that no layer holds."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(d, d) / d**0.5), nn.ParameterList([nn.Parameter(torch.zeros(d))])

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,io->bo", x, self.matrix).tanh() + self.shift[0]


class Pair(nn.Module):
    """A bilinear layer and a distance, as rankers have them."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.pair, self.plain = nn.Bilinear(d, d, d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.pair(x, self.plain(x)), dim=1)


class Vectors(nn.Module):
    """A vector network whose inputs come as one tensor, two, a dict or a list."""

    def __init__(self, blocks: list[nn.Module], d: int, head: str) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(10, d), nn.Sequential(*blocks), nn.Linear(d, 5)
        self.head = head

    def forward(self, a: Any, b: Tensor | None = None) -> Any:
        x = a[0] + a[1] if isinstance(a, (list, tuple)) else a if b is None else a - b
        x = self.blocks(F.relu(self.first(x)))
        out = self.last(x)
        return out.softmax(1) if self.head == "distribution" else (out, x) if self.head == "features too" else out


VECTORS: dict[str, Callable[[random.Random, int], nn.Module]] = {
    "skip": _sized(Skip),
    "raw parameters": _sized(Raw),
    "bilinear": _sized(Pair),
    "dropout": lambda chance, d: nn.Sequential(nn.Linear(d, d), nn.Dropout(0.2), nn.Tanh()),
    "layer norm": lambda chance, d: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 40), nn.GELU(), nn.Linear(40, d)),
}

# ---- habits: what people do to a finished network -----------------------------------------------------------------------------


def _weighted(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Linear, nn.Conv2d, nn.Conv1d)
    inside = [child for m in model.modules() if isinstance(m, nn.MultiheadAttention) for child in m.modules()]
    return [m for m in model.modules() if isinstance(m, kinds) and not any(m is child for child in inside)]


def _masks(model: nn.Module, chance: random.Random) -> nn.Module:
    some = _weighted(model)
    for module in some if chance.random() < 0.5 else some[:1]:
        prune.l1_unstructured(module, "weight", amount=0.6)
    return model


def _weight_norm(model: nn.Module, chance: random.Random) -> nn.Module:
    nn.utils.parametrizations.weight_norm(chance.choice(_weighted(model)))
    return model


def _spectral(model: nn.Module, chance: random.Random) -> nn.Module:
    nn.utils.parametrizations.spectral_norm(chance.choice(_weighted(model)))
    return model


@torch.no_grad()
def _tiny(model: nn.Module, chance: random.Random) -> nn.Module:
    for module in _weighted(model):
        if module.bias is not None:
            module.weight[0] *= chance.choice((1e-3, 1e-6, 0.0))
            module.bias[0] = 1.0
    return model


@torch.no_grad()
def _decayed(model: nn.Module, chance: random.Random) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            module.weight[1], module.bias[1] = 1e-6, 1.0
            module.weight[2], module.bias[2] = 0.0, 0.0
    return model


@torch.no_grad()
def _extreme(model: nn.Module, chance: random.Random) -> nn.Module:
    some = _weighted(model)
    some[0].weight *= 1e15
    some[-1].weight *= 1e-15
    return model


class Locked(nn.Module):
    """A network in a class that also holds a lock, a generator and a list of losses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.lock, self.losses = net, threading.Lock(), [(torch.ones(1, requires_grad=True) * 2).sum()]

    def forward(self, *arguments: Any) -> Any:
        return self.net(*arguments)


class Hooked(nn.Module):
    """A network whose features a hook takes out and a second head reads."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, {}
        taken = _weighted(net)[0]
        taken.register_forward_hook(lambda module, given, output: self.seen.__setitem__("features", output))

    def forward(self, *arguments: Any) -> Any:
        out = self.net(*arguments)
        return out, self.seen["features"].flatten(1).mean(1, keepdim=True)


HABITS: dict[str, Callable[[nn.Module, random.Random], nn.Module]] = {
    "pruning masks": _masks,
    "weight norm": _weight_norm,
    "spectral norm": _spectral,
    "tiny channels": _tiny,
    "decayed norms": _decayed,
    "extreme scales": _extreme,
    "a lock inside": lambda model, chance: Locked(model),
    "features by a hook": lambda model, chance: Hooked(model),
}


def stranger(number: int, *, seed: int = 0) -> Stranger:
    """The network with this number; another seed gives other weights in the same network.

    Raises: ValueError for a negative number.
    """
    if number < 0:
        raise ValueError(f"number={number} of a network must not be negative; use 0, 1, 2, ...")
    chance = random.Random(number)
    kind = ("images", "tokens", "vectors")[chance.choices(range(3), (5, 4, 2))[0]]
    size = chance.choice((12, 16, 20)) if kind != "tokens" else chance.choice((16, 24))
    table = {"images": IMAGES, "tokens": TOKENS, "vectors": VECTORS}[kind]
    names = [chance.choice(sorted(table)) for _ in range(chance.choice((1, 2, 3)))]
    with torch.random.fork_rng():
        torch.manual_seed(1000 * number + seed)
        blocks = [table[name](chance, size) for name in names]
        model, batches, head = _whole(kind, blocks, size, chance)
        _lived_in_(model)
        habit = chance.choice(sorted(HABITS)) if chance.random() < 0.4 else ""
        if kind == "images" and not habit and chance.random() < 0.2:
            model, habit = torch.fx.symbolic_trace(model), "traced by torch.fx"
        elif habit:
            model = HABITS[habit](model, chance)
    words = f"{kind}: {', '.join(names)}; {head}" + (f"; {habit}" if habit else "")
    return Stranger(number, model.eval(), batches, words)


def _whole(kind: str, blocks: list[nn.Module], size: int, chance: random.Random) -> tuple[nn.Module, list[Any], str]:
    """The network around the blocks and two batches of its inputs, which do not depend on the weights."""
    source = torch.Generator().manual_seed(chance.randrange(2**31))
    if kind == "images":
        head = chance.choice(("pool", "flatten", "two", "dict", "map"))
        return Pooled(blocks, size, head), [torch.randn(ROWS, 3, IMAGE, IMAGE, generator=source) for _ in range(2)], head
    if kind == "tokens":
        head = chance.choice(("tied", "tags", "pooled"))
        lengths = (LENGTH, LENGTH + 3) if chance.random() < 0.4 else (LENGTH, LENGTH)
        batches = [torch.randint(0, VOCABULARY, (ROWS, length), generator=source) for length in lengths]
        return Tokens(blocks, size, head), batches, head + (", several lengths" if lengths[0] != lengths[1] else "")
    head = chance.choice(("plain", "distribution", "features too"))
    vectors = [[torch.randn(ROWS, 10, generator=source) for _ in range(2)] for _ in range(2)]
    form = chance.choice(("tensor", "two", "list"))
    batches = [a if form == "tensor" else (a, b) if form == "two" else ([a, b],) for a, b in vectors]
    return Vectors(blocks, size, head), batches, f"{head}, inputs as {form}"


@torch.no_grad()
def _lived_in_(model: nn.Module) -> None:
    """Norms with statistics and scales as a training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
