"""Codes as the tests of the coders want them, and the loops that are compiled for whole streams, one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enxuto.coding import model_kernels, simple_kernels
from enxuto.coding.bits import width
from enxuto.coding.model_kernels import PRECISIONS
from enxuto.coding.simple import read_only
from enxuto.coding.stream import STATIC
from enxuto.errors import ArtifactError


def sparse_codes(count: int, symbols: int, sparsity: float, seed: int = 0) -> np.ndarray:
    """Codes around the middle symbol, which a fraction `sparsity` of them is at least."""
    chance = np.random.default_rng(seed)
    codes = np.clip(np.rint(chance.normal(symbols / 2, symbols / 8, count)), 0, symbols - 1)
    codes[chance.random(count) < sparsity] = symbols // 2
    return codes.astype(np.uint8 if symbols <= 256 else np.uint16)


@dataclass(frozen=True)
class Model:
    """The frequencies of all symbols, which sum to `2 ** precision`."""

    frequencies: np.ndarray
    precision: int

    def bits(self, counts: np.ndarray) -> float:
        return model_kernels.message_bits(counts, self.frequencies, self.precision)


def fit(counts: np.ndarray, precision: int) -> Model:
    """The model of this precision that suits the counts."""
    frequencies = np.empty(counts.size, np.int64)
    model_kernels.fit_model(counts, precision, frequencies)
    return Model(frequencies, precision)


def best(counts: np.ndarray) -> tuple[Model, bytes] | None:
    """The model that is smallest together with the symbols, and its table; None where none holds them all."""
    frequencies = np.empty(counts.size, np.int64)
    first = PRECISIONS[-1] if counts.sum() >= 1 << 16 else PRECISIONS[0]
    precision = model_kernels.choose_model(counts, first, PRECISIONS[-1], frequencies)
    return (model := Model(frequencies, precision), write_table(model)) if precision else None


def write_table(model: Model) -> bytes:
    size = model.frequencies.size
    out = np.zeros(model_kernels.table_room(size), np.uint8)
    return out[: model_kernels.write_table(model.frequencies, model.precision, width(size), out)].tobytes()


def read_table(data: bytes, symbols: int) -> tuple[Model, int]:
    """The model that stands at the begin of the data, and the place behind it."""
    frequencies = np.zeros(symbols, np.int64)
    precision, end = model_kernels.read_table(read_only(data), 0, len(data), width(symbols), frequencies)
    if end < 0:
        raise ArtifactError("no table")
    return Model(frequencies, precision), end


def static(codes: np.ndarray, symbols: int, model: Model | None = None, size: float | None = None) -> bytes:
    """A static stream, under the model that suits the codes best or another, whether it pays or not."""
    counts = np.bincount(codes, minlength=symbols)
    model = model or best(counts)[0]
    table = np.frombuffer(write_table(model), np.uint8)
    size = model.bits(counts) / 8 if size is None else size
    out = np.zeros(table.size + 4 * codes.size + 64, np.uint8)
    bits = 8 * out.size // codes.size + 1  # so wide that raw is never smaller
    chosen = STATIC, float(size), model.precision, table.size
    return out[: simple_kernels._write_chosen(codes, bits, chosen, model.frequencies, table, out, 0)].tobytes()
