"""The static model of an entropy-coded stream: how often each symbol occurs, as integers that sum to a power of two.

Only the model and its compact table are here; the coder that uses it is in `coder`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Data, width
from enxuto.errors import ArtifactError

PRECISIONS = (8, 10, 12, 14)  # log2 of the sums that are tried; finer fits better and makes a larger table
_MANY = 1 << 16  # codes for which a finer table pays
_LONGEST = 64  # bits of a frequency and of the run of zeros behind it, at most
_FIELD_BITS = 4  # of the precision and of the Golomb order in a table


@dataclass(frozen=True)
class Model:
    """Frequencies of all symbols, summing to `2 ** precision`; 0 for a symbol that never occurs.

    Shapes: frequencies [symbols] int64.
    """

    frequencies: NDArray[np.int64]
    precision: int

    def bits(self, counts: NDArray[np.int64]) -> float:
        """The bits that symbols with these counts take under this model, without table and flush."""
        used = counts > 0
        return float((counts[used] * (self.precision - np.log2(self.frequencies[used]))).sum())


def fit(counts: NDArray[np.int64], precision: int) -> Model:
    """The model that codes symbols with these counts in nearly the fewest bits; each that occurs gets at least 1.

    Units of the sum are given (or taken back) one by one where they save (or cost) most, after rounding down.
    Shapes: counts [symbols].
    """
    from enxuto.coding.kernels import settle_sum

    total = 1 << precision
    used = np.flatnonzero(counts)
    assert 0 < used.size <= total, "more different symbols than the precision can hold"
    population = int(counts.sum())
    shift = max(0, population.bit_length() + precision - 63)  # products stay below 2**63
    occurring = np.maximum(1, counts[used].astype(np.int64) >> shift)
    frequencies = np.maximum(1, occurring * total // int(occurring.sum()))
    settle_sum(occurring, frequencies, total)
    full = np.zeros(counts.size, np.int64)
    full[used] = frequencies
    return Model(full, precision)


def best(counts: NDArray[np.int64]) -> tuple[Model, bytes] | None:
    """The model and its table that are smallest together with the symbols; None when no precision holds them all."""
    found: tuple[float, Model] | None = None
    for precision in PRECISIONS[-1:] if counts.sum() >= _MANY else PRECISIONS:
        if np.count_nonzero(counts) <= 1 << precision:
            model = fit(counts, precision)
            size = model.bits(counts) + int(_table_bits(model).min())
            if found is None or size < found[0]:
                found = (size, model)
    return (found[1], write_table(found[1])) if found else None


def write_table(model: Model) -> bytes:
    """Few bytes: precision, order, the most frequent symbol (its frequency follows from the sum), then the others.

    The others are exponential Golomb codes of the order that is shortest; behind a 0 stands the number of further
    zeros, so that rare and absent symbols cost little. 16 symbols of a sparse layer take about 15 bytes.
    """
    from enxuto.coding.kernels import write_golomb

    mode, bits = int(model.frequencies.argmax()), width(model.frequencies.size)
    order = int(_table_bits(model).argmin())
    head = model.precision << _FIELD_BITS + bits | order << bits | mode
    start = 2 * _FIELD_BITS + bits
    out = np.zeros(start + _LONGEST * model.frequencies.size, np.uint8)
    out[:start] = [head >> start - 1 - place & 1 for place in range(start)]
    end = write_golomb(np.delete(model.frequencies, mode), order, out, start)
    return np.packbits(out[:end]).tobytes()


def read_table(data: Data, symbols: int) -> tuple[Model, int]:
    """The model of `symbols` symbols that `write_table` wrote at the begin of the data, and the place behind it.

    Raises: ArtifactError when the table ends early, contradicts itself, or its frequencies do not sum up.
    """
    from enxuto.coding.kernels import read_golomb

    size = width(symbols)
    start = 2 * _FIELD_BITS + size
    most = (start + _LONGEST * symbols) // 8 + 1
    bits = np.unpackbits(np.frombuffer(data[:most], np.uint8))
    others = np.zeros(max(0, symbols - 1), np.int64)
    precision, order, mode = (
        int("".join(map(str, bits[first:last])) or "0", 2)
        for first, last in ((0, _FIELD_BITS), (_FIELD_BITS, 2 * _FIELD_BITS), (2 * _FIELD_BITS, start))
    )
    end = read_golomb(bits, start, order, 1 << precision, others) if bits.size >= start else -1
    left = (1 << precision) - int(others.sum())
    whole = -end % 8 + end
    if end < 0 or left < 1 or mode >= symbols or precision not in PRECISIONS or bits[end:whole].any():
        raise ArtifactError(f"the frequency table of {symbols} symbols ends early or contradicts itself; the file is damaged.")
    return Model(np.insert(others, mode, left), precision), whole // 8


def _table_bits(model: Model) -> NDArray[np.int64]:
    """The bits of the table by Golomb order, but for what runs of zeros save. Shapes: -> [orders]."""
    values = np.sort(model.frequencies)[:-1]
    values = values[np.flatnonzero(values)[0] - (values[0] == 0) :] if values.any() else values[:1]
    orders = np.arange(model.precision)[:, None]
    bits = 2 * np.frexp(((values[None, :] >> orders) + 1).astype(np.float64))[1].astype(np.int64) - 1 + orders
    total: NDArray[np.int64] = bits.sum(axis=1)
    return total
