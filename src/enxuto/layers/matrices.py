"""The weight of a layer as a matrix [out, in], whose row is what one output channel multiplies its inputs with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from enxuto.layers.traits import traits


def matrix_of(module: nn.Module, weight: Tensor) -> Tensor:
    """The matrix of a weight, or of anything else of its shape; a convolution's row meets a patch of its group's channels.

    >>> matrix_of(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.ConvTranspose1d(4, 6, 3, groups=2).weight).shape
    torch.Size([6, 6])
    """
    if traits(module).transposed:  # [in, out / groups, ...]
        parts = weight.reshape(_groups(module), -1, *weight.shape[1:])
        return parts.transpose(1, 2).reshape(weight.shape[1] * _groups(module), -1)
    return weight.flatten(1)


def weight_of(module: nn.Module, matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `matrix_of`, for a weight of this shape."""
    if traits(module).transposed:
        parts = matrix.reshape(_groups(module), shape[1], shape[0] // _groups(module), *shape[2:])
        return parts.transpose(1, 2).reshape(tuple(shape))
    return matrix.reshape(tuple(shape))


def _groups(module: nn.Module) -> int:
    groups: int = vars(module)["groups"]
    return groups
