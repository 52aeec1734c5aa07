"""Codes side by side in bytes, as a layer keeps them in memory: 1, 2, 4 or 8 bits each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from enxuto.functional.affine import PIECE


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes side by side in bytes, 1, 2, 4 or 8 bits each, the first in the lowest bits.

    Shapes: codes [n] integers below 2^bits -> uint8 [ceil(n · width / 8)].
    """
    width = storage_bits(bits)
    if width == 8:
        return codes.to(torch.uint8)
    per_byte = 8 // width
    shifts = torch.arange(per_byte, dtype=torch.int32, device=codes.device) * width
    made = torch.empty(-(-codes.numel() // per_byte), dtype=torch.uint8, device=codes.device)
    for few, packed in zip(codes.split(PIECE), made.split(PIECE // per_byte), strict=True):
        padded = torch.nn.functional.pad(few.to(torch.int32), (0, -few.numel() % per_byte)).view(-1, per_byte)
        packed.copy_((padded << shifts).sum(dim=1))
    return made


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: int32 [count]."""
    width = storage_bits(bits)
    shifts = torch.arange(0, 8, width, dtype=torch.int32, device=packed.device)
    wide = packed.to(torch.int32)[:, None]  # uint8 bit operations export to an invalid ONNX graph
    return ((wide >> shifts) & (2**width - 1)).flatten()[:count]


def storage_bits(bits: int) -> int:
    """The width of a code in memory: the next of 1, 2, 4, 8."""
    return 1 << math.ceil(math.log2(bits))


def pieces(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of a matrix in pieces of at most PIECE values that lie side by side in memory.

    >>> list(pieces(1, PIECE + 1))
    [(slice(0, 1, None), slice(0, 131072, None)), (slice(0, 1, None), slice(131072, 131073, None))]
    """
    high = max(1, PIECE // max(1, width))
    for row in range(0, rows, high):
        for column in range(0, width, PIECE):
            yield slice(row, min(row + high, rows)), slice(column, min(column + PIECE, width))
