"""Streams of codes that are read in one compiled call: *constant*, *raw*, *static*, and *runs*, which are two of these.

*static* is an entropy coder under a model that is fitted to all codes and stored in front. *runs* are those of the most frequent
code: how many of it stand before each other code, and those others; what is nearly all zeros reads fast so, a symbol for a
whole run. The loops are in `simple_kernels`, imported at the first call, because numba takes a third of a second to load.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from enxuto.coding.bits import Codes, Data, packed_bytes, width
from enxuto.coding.stream import CONSTANT, METHODS, RAW, RUNS, STATIC, check_filled, unknown
from enxuto.errors import ArtifactError

_SLACK = 32  # bytes for methods and lengths


def count(codes: Codes, symbols: int) -> NDArray[np.int64]:
    """How often each symbol occurs. Shapes: codes [count] -> [symbols]."""
    counts = np.zeros(symbols, np.int64)
    _loops().histogram(codes, counts)
    return counts


def entropy(counts: NDArray[np.int64]) -> float:
    """The bytes of codes with these counts at their order-0 entropy, without any table."""
    return float(_loops().entropy(counts)) / 8


def noisy(counts: NDArray[np.int64], bits: int) -> bool:
    """True when codes with these counts are hardly smaller than raw, whatever the model."""
    return bits > 0 and entropy(counts) >= _loops().NOISE * int(counts.sum()) * bits / 8


def estimate(counts: NDArray[np.int64]) -> float:
    """The bytes, nearly, of the smallest stream without runs of codes with these counts."""
    scratch = np.empty(counts.size, np.int64), np.zeros(_loops().table_room(counts.size), np.uint8)
    return float(_loops().choose(counts, width(counts.size), _loops().FINEST, *scratch)[1])


def encode(codes: Codes, symbols: int) -> bytes:
    """The smallest stream without runs, never more than a byte above raw; empty for no codes. Shapes: codes [count]."""
    out = np.empty(_room(codes, symbols), np.uint8)
    return out[: _loops().write_simple(codes, symbols, out, 0)].tobytes()


def encode_raw(codes: Codes, symbols: int) -> bytes:
    """The codes, as few bits each as hold all symbols. Shapes: codes [count]."""
    out = np.empty(1 + packed_bytes(codes.size, width(symbols)), np.uint8)
    out[0] = RAW
    _loops().pack_bits(codes, width(symbols), out, 1)
    return out.tobytes()


def encode_runs(codes: Codes, mode: int, symbols: int) -> bytes:
    """The codes as runs of `mode`. Shapes: codes [count]."""
    out = np.empty(_runs_room(codes, symbols), np.uint8)
    return out[: _loops().write_runs(codes, mode, symbols, out)].tobytes()


def encode_fast(codes: Codes, symbols: int) -> bytes:
    """The smallest stream without runs, or runs where they are read faster and are hardly larger. Shapes: codes [count]."""
    out = np.empty(_runs_room(codes, symbols), np.uint8)
    return out[: _loops().write_fast(codes, symbols, out)].tobytes()


def decode(data: Data, count: int, symbols: int, *, runs: bool = False) -> Codes:
    """The codes of a stream without runs, or of one that may have them: uint8 up to 256 symbols, uint16 above.

    Raises: ArtifactError when the data is damaged or coded in another way.
    """
    codes: Codes = np.empty(count, np.uint8 if symbols <= 256 else np.uint16)
    if not check_filled(data, count):
        return codes
    view, method = read_only(data), data[0]
    if method == RUNS and runs:
        whole = _loops().read_runs(view, 1, symbols, codes)
    elif method in (CONSTANT, RAW, STATIC):
        whole = _loops().read_simple(view, 0, view.size, symbols, codes)
    else:
        raise unknown(method, "codes")
    if not whole:
        raise ArtifactError(f"a {METHODS[method]} stream of {len(data)} bytes is not {count} codes; the file is damaged.")
    return codes


def read_only(data: Data) -> NDArray[np.uint8]:
    """The bytes as an array that cannot be written, whatever they are: one type, for which the loops are compiled once."""
    return np.frombuffer(data if isinstance(data, bytes) else memoryview(data).toreadonly(), np.uint8)


@cache
def _loops() -> ModuleType:
    """The compiled loops, which take a third of a second to import."""
    from enxuto.coding import simple_kernels

    return simple_kernels


def _room(codes: Codes, symbols: int) -> int:
    """The bytes of a stream without runs, at most."""
    return 1 + max(2, packed_bytes(codes.size, width(symbols)))


def _runs_room(codes: Codes, symbols: int) -> int:
    """The bytes of a stream of runs, at most: a byte for each run and each other code, and three numbers."""
    return _room(codes, symbols) + codes.size + codes.size // 255 + _SLACK
