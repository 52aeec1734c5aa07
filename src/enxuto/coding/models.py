"""The static model of an entropy-coded stream: how often each symbol occurs, as integers that sum to a power of two.

Only the model and its compact table are here; the coder that uses it is in `coder`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Data, width
from enxuto.errors import ArtifactError

PRECISIONS = range(8, 15, 2)  # log2 of the sums that are tried; finer fits better and makes a larger table
_MANY = 1 << 16  # codes for which a finer table pays
_LONGEST = 64  # bits of a frequency and of the run of zeros behind it, at most
_HEAD_BITS = 8  # of the precision and of the Golomb order in a table


@dataclass(frozen=True)
class Model:
    """Frequencies of all symbols, summing to `2 ** precision`; 0 for a symbol that never occurs.

    Shapes: frequencies [symbols] int64.
    """

    frequencies: NDArray[np.int64]
    precision: int

    def bits(self, counts: NDArray[np.int64]) -> float:
        """The bits that symbols with these counts take under this model, without table and flush."""
        from enxuto.coding.model_kernels import message_bits

        return float(message_bits(counts, self.frequencies, self.precision))


def fit(counts: NDArray[np.int64], precision: int) -> Model:
    """The model that codes symbols with these counts in nearly the fewest bits; each that occurs gets at least 1.

    Units of the sum are given (or taken back) one by one where they save (or cost) most, after rounding down.
    Shapes: counts [symbols].
    """
    from enxuto.coding.model_kernels import fit_model

    assert 0 < np.count_nonzero(counts) <= 1 << precision, "more different symbols than the precision can hold"
    frequencies = np.empty(counts.size, np.int64)
    fit_model(counts, precision, frequencies)
    return Model(frequencies, precision)


def best(counts: NDArray[np.int64]) -> tuple[Model, bytes] | None:
    """The model and its table that are smallest together with the symbols; None when no precision holds them all."""
    from enxuto.coding.model_kernels import choose_model

    frequencies = np.empty(counts.size, np.int64)
    precision = choose_model(counts, PRECISIONS[-1] if counts.sum() >= _MANY else PRECISIONS[0], PRECISIONS[-1], frequencies)
    return (model := Model(frequencies, precision), write_table(model)) if precision else None


def write_table(model: Model) -> bytes:
    """Few bytes: precision, order, the most frequent symbol (its frequency follows from the sum), then the others.

    The others are exponential Golomb codes of the order that is shortest; behind a 0 stands the number of further
    zeros, so that rare and absent symbols cost little. 16 symbols of a sparse layer take about 15 bytes.
    """
    from enxuto.coding.model_kernels import write_bits

    out = np.zeros(_most_bits(model.frequencies.size), np.uint8)
    return np.packbits(out[: write_bits(model.frequencies, model.precision, width(model.frequencies.size), out)]).tobytes()


def read_table(data: Data, symbols: int) -> tuple[Model, int]:
    """The model of `symbols` symbols that `write_table` wrote at the begin of the data, and the place behind it.

    Raises: ArtifactError when the table ends early, contradicts itself, or its frequencies do not sum up.
    """
    from enxuto.coding.model_kernels import read_bits

    bits = np.unpackbits(np.frombuffer(data[: _most_bits(symbols) // 8 + 1], np.uint8))
    frequencies = np.zeros(symbols, np.int64)
    precision, end = read_bits(bits, width(symbols), frequencies)
    whole = -end % 8 + end
    if end < 0 or precision not in PRECISIONS or bits[end:whole].any():
        raise ArtifactError(f"the frequency table of {symbols} symbols ends early or contradicts itself; the file is damaged.")
    return Model(frequencies, precision), whole // 8


def _most_bits(symbols: int) -> int:
    """The bits of a table, at most."""
    return _HEAD_BITS + width(symbols) + _LONGEST * symbols
