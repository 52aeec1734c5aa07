"""A small vision transformer: patches of the image are the tokens, their mean is what gets classified."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from enxuto.errors import ShapeError


class Block(nn.Module):
    """Attention, then a feed-forward network, each behind a layer norm and beside a residual.

    Shapes: tokens [batch, tokens, width] -> [batch, tokens, width].
    """

    def __init__(self, width: int, *, heads: int, ffn: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class TransformerEncoder(nn.Module):
    """A transformer that reads an image as square patches and classifies the mean of its tokens.

    Shapes: images [batch, in_channels, image_size, image_size] -> scores [batch, classes].
    Raises: ShapeError when `patch` does not divide the image or `heads` does not divide the width.
    Source: Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words, section 3.1.
    Deviation: the mean of the tokens instead of a class token; no dropout.
    """

    def __init__(
        self,
        *,
        image_size: int = 28,
        in_channels: int = 1,
        classes: int = 10,
        patch: int = 4,
        width: int = 64,
        heads: int = 4,
        ffn: int = 128,
        layers: int = 2,
    ) -> None:
        super().__init__()
        if image_size % patch:
            fits = [side for side in range(1, image_size + 1) if image_size % side == 0]
            raise ShapeError(f"patch={patch} does not divide the image, {image_size} pixels wide; use one of {fits}.")
        if width % heads:
            fits = [count for count in range(1, width + 1) if width % count == 0]
            raise ShapeError(f"heads={heads} does not divide the width of the tokens, {width}; use one of {fits}.")
        self.patches = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)
        self.position = nn.Embedding((image_size // patch) ** 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads=heads, ffn=ffn) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.position(torch.arange(x.shape[1], device=x.device))
        x = self.norm(self.blocks(x))
        return self.fc(x.mean(dim=1))
