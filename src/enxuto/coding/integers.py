"""Integer codes as a stream: coded in every way that may pay, and the smallest kept.

*constant*, *raw* and *static* are the simple methods, of which *runs* and *classes* are made; *adaptive* and *text* are slow, and
tried where a part of the codes shows that they gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.coding import adaptive, classes, simple
from enxuto.coding.bits import Codes, Data, packed_bytes, width
from enxuto.coding.stream import ADAPTIVE, CLASSES, METHODS, TEXT
from enxuto.errors import RangeError

MAX_SYMBOLS = 1 << 16
_SMALL_CODES, _LARGE_CODES = 1 << 12, 1 << 18
_SLOW_CODES = 1 << 19  # up to here the slow coder is always tried
_SAMPLE_CODES = 1 << 16
_CLEARLY = 0.95  # of the bytes of the fast methods, which the slow one must reach on a part of a large tensor
_MOSTLY = 0.9  # one and the same code, for runs to be tried
_FEW = 0.25  # other codes, at least, for the fast coder to look for classes


def encode_integers(codes: NDArray[Any], symbols: int, *, fast: bool = False) -> bytes:
    """The codes in the fewest bytes found, by methods that are read at hundreds of MB/s if `fast`; empty for no codes.

    The first axis of the shape is taken for the rows of a matrix, whose rows or columns may have something in common.
    Shapes: codes [...] of uint8 or uint16, one symbol per element, each below `symbols`.
    Raises: RangeError when a code is not below `symbols`, or there are more than 65,536 symbols.
    """
    flat = _checked(codes, symbols)
    if not flat.size:
        return b""
    return _fast(flat, _stride(codes), symbols) if fast else min(_tried(flat, _stride(codes), symbols), key=len)


def costs(codes: NDArray[Any], symbols: int) -> dict[str, int]:
    """The bytes that the codes take under each method that can hold them, by its name."""
    flat = _checked(codes, symbols)
    found = {"raw": 1 + packed_bytes(flat.size, width(symbols))} if symbols > 1 and flat.size else {}
    for stream in _tried(flat, _stride(codes), symbols, thorough=True) if flat.size else ():
        found[METHODS[stream[0]]] = min(len(stream), found.get(METHODS[stream[0]], len(stream)))
    return found


def entropy_bytes(codes: NDArray[Any], symbols: int) -> float:
    """The bytes the codes take at their order-0 entropy, without any table. Shapes: codes [...] of uint8 or uint16."""
    return simple.entropy(simple.count(_checked(codes, symbols), symbols))


def decode_integers(data: Data, count: int, symbols: int) -> Codes:
    """The codes that `encode_integers` wrote, flat: uint8 up to 256 symbols, uint16 above.

    `count` decides how much memory is used; a caller that has it from a file checks it first.
    Raises: ArtifactError when the data is damaged; RangeError when there cannot be so many symbols or codes.
    """
    if not 1 <= symbols <= MAX_SYMBOLS or count < 0:
        raise RangeError(f"{count} codes of {symbols} symbols cannot be; give a count from 0 and symbols in 1..{MAX_SYMBOLS}.")
    method = data[0] if count and len(data) else None
    if method == CLASSES:
        return classes.decode(memoryview(data)[1:], count, symbols)
    if method == ADAPTIVE:
        return adaptive.decode(memoryview(data)[1:], count, symbols)
    if method == TEXT and symbols == 256:
        return np.frombuffer(adaptive.decode_text(memoryview(data)[1:], count, b""), np.uint8).copy()
    return simple.decode(data, count, symbols, runs=True)


def _fast(flat: Codes, stride: int, symbols: int) -> bytes:
    """The stream that is read fastest of those that are nearly smallest; classes are looked for in large tensors only."""
    if flat.size > _LARGE_CODES:
        sampled = _sampled(flat, symbols)
        if simple.noisy(sampled, width(symbols)):
            return simple.encode_raw(flat, symbols)
        if flat.size >= classes.LARGE and stride > 1 and sampled.max() <= (1 - _FEW) * sampled.sum():
            budget = simple.entropy(sampled) * flat.size / int(sampled.sum())
            for body in classes.encode(flat, stride, symbols, budget):
                if len(body) < budget:
                    return bytes([CLASSES]) + body
    return simple.encode_fast(flat, symbols)


def _tried(flat: Codes, stride: int, symbols: int, *, thorough: bool = False) -> Iterator[bytes]:
    """The streams of the methods that may be smallest, or of all that can hold the codes."""
    bits = width(symbols)
    if flat.size > _LARGE_CODES and not thorough and simple.noisy(_sampled(flat, symbols), bits):
        yield simple.encode_raw(flat, symbols)
        return
    counts = simple.count(flat, symbols)
    size = simple.estimate(counts)
    most, budget = int(counts.max()), size
    if most == flat.size or (flat.size > _SMALL_CODES and not thorough and simple.noisy(counts, bits)):
        yield simple.encode(flat, symbols)
        return
    if stride > 1:
        for body in classes.encode(flat, stride, symbols, math.inf if thorough else budget):
            yield bytes([CLASSES]) + body
            budget = min(budget, 1 + len(body))
    if thorough or (most > _MOSTLY * flat.size and simple.entropy(np.array([most, flat.size - most])) < budget):
        stream = simple.encode_runs(flat, int(counts.argmax()), symbols)
        yield stream
        budget = min(budget, len(stream))
    if symbols <= adaptive.MAX_SYMBOLS and flat.size <= adaptive.MAX_CODES:
        data = None
        if thorough or _may_adapt(flat, stride, symbols, most, budget / flat.size):
            data = adaptive.encode(flat, stride, symbols, budget=2 * flat.size + 64 if thorough else int(budget) - 2)
        if data is not None:
            yield bytes([ADAPTIVE]) + data
            budget = min(budget, 1 + len(data))
    if symbols == 256 and stride == 1 and flat.size <= adaptive.MAX_TEXT:
        yield bytes([TEXT]) + adaptive.encode_text(flat.tobytes(), b"")
    if size <= budget or thorough:
        yield simple.encode(flat, symbols)


def _may_adapt(flat: Codes, stride: int, symbols: int, most: int, bytes_each: float) -> bool:
    """Whether the slow coder is worth its time: for small tensors, and for large ones of mostly one code that gain clearly."""
    if flat.size <= _SLOW_CODES:
        return True
    sample, budget = flat[:_SAMPLE_CODES], int(_CLEARLY * bytes_each * _SAMPLE_CODES)
    return most > flat.size / 2 and adaptive.encode(sample, min(stride, sample.size), symbols, budget) is not None


def _sampled(flat: Codes, symbols: int) -> NDArray[np.int64]:
    """The counts of a part of many codes."""
    return simple.count(flat[:: flat.size // _SAMPLE_CODES], symbols)


def _stride(codes: NDArray[Any]) -> int:
    return codes.size // codes.shape[0] if codes.ndim > 1 and codes.shape[0] > 1 else 1


def _checked(codes: NDArray[Any], symbols: int) -> Codes:
    if not 1 <= symbols <= MAX_SYMBOLS:
        raise RangeError(f"symbols={symbols} is outside 1..{MAX_SYMBOLS}; use encode_array for wider integers.")
    if codes.dtype not in (np.uint8, np.uint16):
        raise RangeError(f"codes of type {codes.dtype} are not coded; give one symbol per element as uint8 or uint16.")
    flat = np.ascontiguousarray(codes).reshape(-1)
    if symbols < 1 << 8 * codes.dtype.itemsize and flat.size and int(flat.max()) >= symbols:
        raise RangeError(f"code {int(flat.max())} is not below symbols={symbols}; give symbols={int(flat.max()) + 1}.")
    return flat.astype(_dtype(symbols), copy=False)


def _dtype(symbols: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if symbols <= 256 else np.uint16
