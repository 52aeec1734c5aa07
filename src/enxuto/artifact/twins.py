"""Which tensors of a file stand in it a second time, byte for byte: tied weights that a format wrote twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from enxuto.artifact.spans import Span

_CHUNK = 1 << 22
_EDGE = 64  # bytes by which tensors are told apart before all of them are compared
Read = Callable[[int, int], bytes]
Key = tuple[str, int, bytes]


def twins(read: Read, spans: list[Span]) -> list[list[Any]]:
    """Place, name and first one of each tensor whose bytes stood before. `read(start, length)` gives bytes of the file."""
    found: list[list[Any]] = []
    lone: dict[Key, Span] = {}  # the first one of a kind, read as a whole when a second one comes
    firsts: dict[Key, dict[bytes, Span]] = {}  # by digest, of the kinds with a second one
    for place, span in enumerate(spans):
        middle = span.offset + span.nbytes // 2
        edge = read(span.offset, min(_EDGE, span.nbytes)) + read(middle, min(_EDGE, span.nbytes - span.nbytes // 2))
        key = span.dtype, span.nbytes, edge
        other = lone.setdefault(key, span)
        if other is span:
            continue
        if key not in firsts:
            firsts[key] = {_digest(read, other): other}
        first = firsts[key].setdefault(_digest(read, span), span)
        if first is not span:
            found.append([place, span.name, first.name])
    return found


def _digest(read: Read, span: Span) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, span.nbytes, _CHUNK):
        digest.update(read(span.offset + start, min(_CHUNK, span.nbytes - start)))
    return digest.digest()
