"""Factors for channels: how far each is moved from the layer that writes it into the layers that read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 24.0  # powers of two, up or down, that a factor may be: beyond them float32 has no room for what follows


@dataclass(frozen=True)
class Balance:
    """Factors read^r / (written^w met^m) of the ranges of each channel: in the rows that write it, the columns that read it, and
    the inputs that meet these columns.
    """

    name: str
    written: float = 0.0
    read: float = 0.0
    met: float = 0.0
    mean: bool = False  # inputs by their mean magnitude, and not by their largest

    def __call__(self, written: Tensor | None, read: Tensor | None, met: Tensor | None) -> Tensor | None:
        """The factors, 1 on average over their logarithms; None where a range is asked for that is not known.

        A channel of which one of these ranges is zero keeps the factor 1. Shapes: [units] each -> float64 [units].
        >>> EQUAL_RANGES(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.0]), None)
        tensor([0.7071, 1.4142], dtype=torch.float64)
        """
        exponent, live = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.bool)
        for ranges, power in ((written, -self.written), (read, self.read), (met, -self.met)):
            if not power:
                continue
            if ranges is None:
                return None
            live = live & (ranges > 0) & ranges.isfinite()
            exponent = exponent + power * ranges.double().clamp_min(1e-300).log2()
        if not bool(live.any()):
            return None
        exponent = exponent - exponent[live].mean()
        return torch.where(live, exponent, 0.0).clamp(-WIDEST, WIDEST).exp2()


EQUAL_RANGES = Balance("equal ranges of the weights", written=0.5, read=0.5)
"""Rows and columns of each channel get the same range. Source: Nagel, van Baalen, Blankevoort, Welling 2019, "Data-free
quantization through weight equalization and bias correction", equation 11."""
EQUAL_ROWS = Balance("equal ranges of the rows", written=1.0)
"""For rows before a batch norm, which answers for any factor."""


def smoothed(alpha: float) -> Balance:
    """A part of the inputs' range moves into the weights: 0 makes columns of equal range, 1 inputs.

    Source: Xiao et al. 2023, "SmoothQuant: accurate and efficient post-training quantization for large language models", eq. 4.
    """
    return Balance(f"inputs and weights, alpha {alpha:g}", read=1 - alpha, met=alpha)


def protected(power: float) -> Balance:
    """Columns that meet large inputs get more of the grid.

    Source: Lin et al. 2024, "AWQ: activation-aware weight quantization for on-device LLM compression and acceleration", eq. 5.
    """
    return Balance(f"inputs, power {power:g}", met=power, mean=True)


def whole_powers(factors: Tensor) -> Tensor:
    """The nearest powers of two, which change no digit of a number.

    >>> whole_powers(torch.tensor([0.7, 3.0, 5.0]))
    tensor([0.5000, 4.0000, 4.0000])
    """
    return factors.log2().round().exp2()
