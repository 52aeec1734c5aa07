"""The static model of an entropy-coded stream: how often each symbol occurs, as integers that sum to a power of two.

Only the model and its compact table are here; the coder that uses it is in `coder`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import MAX_BITS, Data, width
from enxuto.errors import ArtifactError

PRECISIONS = (8, 10, 12, 14)  # log2 of the sums that are tried; finer fits better and makes a larger table
_MANY = 1 << 16  # codes for which a finer table pays
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
    total = 1 << precision
    used = np.flatnonzero(counts)
    assert 0 < used.size <= total, "more different symbols than the precision can hold"
    occurring = [int(count) for count in counts[used]]
    population = sum(occurring)
    frequencies = [max(1, count * total // population) for count in occurring]
    missing = total - sum(frequencies)
    step = 1 if missing > 0 else -1
    heap = [(_price(c, f, step), i) for i, (c, f) in enumerate(zip(occurring, frequencies, strict=True)) if f + step > 0]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        _, index = heapq.heappop(heap)
        frequencies[index] += step
        if frequencies[index] + step > 0:
            heapq.heappush(heap, (_price(occurring[index], frequencies[index], step), index))
    full = np.zeros(counts.size, np.int64)
    full[used] = frequencies
    return Model(full, precision)


def best(counts: NDArray[np.int64]) -> tuple[Model, bytes] | None:
    """The model and its table that are smallest together with the symbols; None when no precision holds them all."""
    found: tuple[float, Model, bytes] | None = None
    for precision in PRECISIONS[-1:] if counts.sum() >= _MANY else PRECISIONS:
        if np.count_nonzero(counts) <= 1 << precision:
            model = fit(counts, precision)
            table = write_table(model)
            size = model.bits(counts) + 8 * len(table)
            if found is None or size < found[0]:
                found = (size, model, table)
    return found and found[1:]


def write_table(model: Model) -> bytes:
    """Few bytes: precision, order, the most frequent symbol (its frequency follows from the sum), then the others.

    The others are exponential Golomb codes of the order that is shortest; behind a 0 stands the number of further
    zeros, so that rare and absent symbols cost little. 16 symbols of a sparse layer take about 15 bytes.
    """
    mode = int(model.frequencies.argmax())
    others = np.delete(model.frequencies, mode)
    order = int(_golomb_bits(others[None, :], np.arange(model.precision)[:, None]).sum(axis=1).argmin())
    head = (model.precision, _FIELD_BITS), (order, _FIELD_BITS), (mode, width(model.frequencies.size))
    parts = [f"{value:0{bits}b}" for value, bits in head if bits]
    values, at = others.tolist(), 0
    while at < len(values):
        parts.append(_golomb(values[at], order))
        at += 1
        if values[at - 1] == 0:
            run = next((i for i, value in enumerate(values[at:]) if value), len(values) - at)
            parts.append(_golomb(run, 0))
            at += run
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def read_table(data: Data, symbols: int) -> tuple[Model, int]:
    """The model of `symbols` symbols that `write_table` wrote at the begin of the data, and the place behind it.

    Raises: ArtifactError when the table ends early, contradicts itself, or its frequencies do not sum up.
    """
    source = _Bits(data)
    precision, order = source.take(_FIELD_BITS), source.take(_FIELD_BITS)
    mode = source.take(width(symbols))
    others = np.zeros(symbols - 1, np.int64)
    at, left = 0, 1 << precision
    while at < symbols - 1 and left > 0:  # a table that gives away more than there is may be long
        others[at] = value = source.golomb(order)
        left -= value
        at += 1
        if value == 0:
            at += source.golomb(0)
    if at != symbols - 1 or left < 1 or mode >= symbols or precision not in PRECISIONS or source.rest():
        raise ArtifactError(f"the frequency table of {symbols} symbols contradicts itself; the file is damaged.")
    return Model(np.insert(others, mode, left), precision), source.bytes_read


class _Bits:
    """Bits read one field after another, highest first."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._at = 0

    @property
    def bytes_read(self) -> int:
        """The bytes of which at least one bit was read."""
        return (self._at + 7) // 8

    def take(self, bits: int) -> int:
        first, end = self._at // 8, self._at + bits
        if end > 8 * len(self._data):
            raise ArtifactError(f"a frequency table ends after {len(self._data)} bytes; the file is damaged.")
        part = self._data[first : (end + 7) // 8]
        self._at = end
        return int.from_bytes(part, "big") >> -end % 8 & (1 << bits) - 1

    def golomb(self, order: int) -> int:
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
            if zeros > MAX_BITS:
                raise ArtifactError("a frequency table holds a number that is too large; the file is damaged.")
        head = (1 << zeros | self.take(zeros)) - 1
        return (head << order) + self.take(order)

    def rest(self) -> int:
        """What is left of the byte that was begun."""
        return self.take(-self._at % 8)


def _price(count: int, frequency: int, step: int) -> float:
    """The change in size for a unit more (step 1) or less (step -1): the slope count / frequency at its middle.

    A plain division, unlike a logarithm, is the same on every machine, and so are the bytes.
    """
    return -step * count / (2 * frequency + step)


def _golomb(value: int, order: int) -> str:
    head = f"{(value >> order) + 1:b}"
    tail = f"{value & (1 << order) - 1:0{order}b}" if order else ""
    return "0" * (len(head) - 1) + head + tail


def _golomb_bits(values: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    return 2 * np.frexp(((values >> order) + 1).astype(np.float64))[1].astype(np.int64) - 1 + order
