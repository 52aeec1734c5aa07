"""How many bytes of a stream are tables of frequencies: for those who want to see where the bytes are."""

from __future__ import annotations

from enxuto.coding.bits import Data, read_varint
from enxuto.coding.models import read_table
from enxuto.coding.stream import CLASSES, PLANES, RUNS, SPARSE, STATIC, read_parts


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
    return read_table(stream[1:], symbols)[1] if len(stream) and stream[0] == STATIC and symbols > 1 else 0
