"""Integer codes as a stream: coded in every way that may pay, and the smallest kept.

*constant*, *raw* and *static* are the simple methods; *classes* and *runs* are made of simple streams; *adaptive* and *text*
are slow, and tried where a part of the codes shows that they gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.coding import adaptive, classes, coder, models, runs
from enxuto.coding.bits import Codes, Data, pack, packed_bytes, unpack, width
from enxuto.coding.stream import (
    ADAPTIVE,
    CLASSES,
    CONSTANT,
    METHODS,
    RAW,
    RUNS,
    STATIC,
    TEXT,
    check_filled,
    read_constant,
    unknown,
    write_constant,
)
from enxuto.errors import ArtifactError, RangeError

MAX_SYMBOLS = 1 << 16
_SMALL_CODES, _LARGE_CODES = 1 << 12, 1 << 18
_SLOW_CODES = 1 << 19  # up to here the slow coder is always tried
_SAMPLE_CODES = 1 << 16
_NOISE = 0.995  # of the raw bytes: what does not get below has no pattern worth a search
_CLEARLY = 0.95  # of the bytes of the fast methods, which the slow one must reach on a part of a large tensor
_MOSTLY = 0.9  # one and the same code, for runs to be tried
_FEW, _RARE, _RUN_CODES = 0.25, 0.02, 1 << 14  # other codes, for runs to be read faster; more only where there are so many codes
_HARDLY = 1.03  # of the bytes of the simple stream, which runs may take where they are read faster


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
    return _entropy(coder.count(_checked(codes, symbols), symbols))


def decode_integers(data: Data, count: int, symbols: int) -> Codes:
    """The codes that `encode_integers` wrote, flat: uint8 up to 256 symbols, uint16 above.

    `count` decides how much memory is used; a caller that has it from a file checks it first.
    Raises: ArtifactError when the data is damaged.
    """
    if not check_filled(data, count):
        return np.empty(0, _dtype(symbols))
    data = memoryview(data)
    method, body = data[0], data[1:]
    if method in (CLASSES, RUNS):
        return (classes if method == CLASSES else runs).decode(body, count, symbols, decode_simple)
    if method == ADAPTIVE:
        return adaptive.decode(body, count, symbols)
    if method == TEXT and symbols == 256:
        return np.frombuffer(adaptive.decode_text(body, count, b""), np.uint8).copy()
    return decode_simple(data, count, symbols)


def encode_simple(codes: Codes, symbols: int) -> bytes:
    """The smallest of the streams that a reader takes symbol by symbol. Shapes: codes [count]."""
    return _simple(codes, symbols, coder.count(codes, symbols))[1]() if codes.size else b""


def decode_simple(data: Data, count: int, symbols: int) -> Codes:
    """The codes that `encode_simple` wrote.

    Raises: ArtifactError when the data is damaged or coded in another way.
    """
    if not check_filled(data, count):
        return np.empty(0, _dtype(symbols))
    data = memoryview(data)
    method, body = data[0], data[1:]
    if method == CONSTANT:
        return np.full(count, read_constant(body, symbols), _dtype(symbols))
    if method == RAW and symbols > 1:
        codes = unpack(body, count, width(symbols))
        if symbols < 1 << width(symbols) and int(codes.max()) >= symbols:
            raise ArtifactError(f"code {int(codes.max())} is not below its {symbols} symbols; the file is damaged.")
        return codes
    if method == STATIC and symbols > 1:
        return coder.decode(body, count, symbols)
    raise unknown(method, "codes")


def _simple(codes: Codes, symbols: int, counts: NDArray[np.int64]) -> tuple[float, Callable[[], bytes]]:
    """The bytes of the smallest simple stream, nearly, and what makes it."""
    mode, bits = int(counts.argmax()), width(symbols)
    if counts[mode] == codes.size:
        constant = write_constant(mode)
        return len(constant), lambda: constant
    raw_bytes = 1 + packed_bytes(codes.size, bits)
    modelled = models.best(counts) if codes.size <= _SMALL_CODES or not _noisy(counts, bits) else None
    if modelled is None or (size := 1 + coder.estimate(counts, *modelled)) >= raw_bytes:
        return raw_bytes, lambda: pack(codes, bits, bytes([RAW]))

    def static() -> bytes:
        stream = coder.encode(codes, modelled[0], bytes([STATIC]) + modelled[1], 8 * size)
        return stream if len(stream) <= raw_bytes else pack(codes, bits, bytes([RAW]))  # the size was that of an average

    return size, static


def _fast(flat: Codes, stride: int, symbols: int) -> bytes:
    """The simple stream, but runs where they are read faster and are hardly larger, and classes of large tensors."""
    if flat.size > _LARGE_CODES:
        sampled, bits = _sampled(flat, symbols), width(symbols)
        if _noisy(sampled, bits):
            return pack(flat, bits, bytes([RAW]))
        if flat.size >= classes.LARGE and stride > 1 and sampled.max() <= (1 - _FEW) * sampled.sum():
            budget = _entropy(sampled) * flat.size / int(sampled.sum())
            for body in classes.encode(flat, stride, symbols, budget, encode_simple):
                if len(body) < budget:
                    return bytes([CLASSES]) + body
    counts = coder.count(flat, symbols)
    size, simple = _simple(flat, symbols, counts)
    mode = int(counts.argmax())
    others = flat.size - int(counts[mode])
    if 0 < others < (_FEW if flat.size > _RUN_CODES else _RARE) * flat.size:
        stream = bytes([RUNS]) + runs.encode(flat, mode, symbols, encode_simple)
        if len(stream) <= _HARDLY * size:
            return stream
    return simple()


def _tried(flat: Codes, stride: int, symbols: int, *, thorough: bool = False) -> Iterator[bytes]:
    """The streams of the methods that may be smallest, or of all that can hold the codes."""
    bits = width(symbols)
    if flat.size > _LARGE_CODES and not thorough and _noisy(_sampled(flat, symbols), bits):
        yield pack(flat, bits, bytes([RAW]))
        return
    counts = coder.count(flat, symbols)
    size, simple = _simple(flat, symbols, counts)
    most, budget = int(counts.max()), size
    if most == flat.size or (flat.size > _SMALL_CODES and not thorough and _noisy(counts, bits)):
        yield simple()
        return
    if stride > 1:
        for body in classes.encode(flat, stride, symbols, math.inf if thorough else budget, encode_simple):
            yield bytes([CLASSES]) + body
            budget = min(budget, 1 + len(body))
    if thorough or (most > _MOSTLY * flat.size and _entropy(np.array([most, flat.size - most])) < budget):
        body = runs.encode(flat, int(counts.argmax()), symbols, encode_simple)
        yield bytes([RUNS]) + body
        budget = min(budget, 1 + len(body))
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
        yield simple()


def _may_adapt(flat: Codes, stride: int, symbols: int, most: int, bytes_each: float) -> bool:
    """Whether the slow coder is worth its time: for small tensors, and for large ones of mostly one code that gain clearly."""
    if flat.size <= _SLOW_CODES:
        return True
    sample, budget = flat[:_SAMPLE_CODES], int(_CLEARLY * bytes_each * _SAMPLE_CODES)
    return most > flat.size / 2 and adaptive.encode(sample, min(stride, sample.size), symbols, budget) is not None


def _noisy(counts: NDArray[np.int64], bits: int) -> bool:
    """True when codes with these counts are hardly smaller than raw, whatever the model."""
    return _entropy(counts) >= _NOISE * int(counts.sum()) * bits / 8


def _sampled(flat: Codes, symbols: int) -> NDArray[np.int64]:
    """The counts of a part of many codes."""
    return coder.count(flat[:: flat.size // _SAMPLE_CODES], symbols)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bytes at the order-0 entropy of these counts."""
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum()) / 8


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
