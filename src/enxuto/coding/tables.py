"""How many bytes of a stream are tables of frequencies: for those who want to see where the bytes are."""

from __future__ import annotations

import numpy as np

from enxuto.coding.bits import Data, read_varint, width
from enxuto.coding.simple import read_only
from enxuto.coding.stream import CLASSES, PLANES, RUNS, SPARSE, STATIC, read_parts
from enxuto.errors import ArtifactError


def table_bytes(stream: Data, symbols: int, wide: int = 1) -> int:
    """The bytes of all frequency tables in a stream of codes, or of an array (256 symbols) of elements of `wide` bytes.

    Raises: ArtifactError when the stream is damaged.
    """
    if not len(stream):
        return 0
    method, body = stream[0], stream[1:]
    if method == CLASSES:
        _, at = read_varint(body, 0)
        number = int.from_bytes(body[at : at + 1], "little")
        first, *others = read_parts(body, at + 1, number + 1)
        return _simple(first, number) + sum(_simple(part, symbols) for part in others)
    if method == RUNS:
        _, at = read_varint(body, 0)
        _, at = read_varint(body, at)
        first, second = read_parts(body, at, 2)
        return _simple(first, 256) + _simple(second, symbols)
    if method == PLANES and wide > 1:
        return sum(table_bytes(part, 256) for part in read_parts(body, 1, wide))
    if method == SPARSE and wide > 1:
        first, second = read_parts(body, 0, 2)
        return table_bytes(first, 2) + (table_bytes(second, 256, wide) if second[:1] == bytes([PLANES]) else 0)
    return _simple(stream, symbols)


def _simple(stream: Data, symbols: int) -> int:
    """The bytes of the table of a stream without runs."""
    from enxuto.coding.model_kernels import read_table

    if not len(stream) or stream[0] != STATIC or symbols < 2:
        return 0
    _, end = read_table(read_only(stream), 1, len(stream), width(symbols), np.zeros(symbols, np.int64))
    if end < 0:
        raise ArtifactError(f"the frequency table of {symbols} symbols ends early or contradicts itself; the file is damaged.")
    return int(end) - 1
