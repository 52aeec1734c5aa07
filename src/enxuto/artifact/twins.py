"""Which tensors of a file stand in it a second time, byte for byte: tied weights that a format wrote twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from enxuto.artifact.spans import Span

_CHUNK = 1 << 22
_EDGE = 64  # bytes by which tensors are told apart before all of them are compared
Read = Callable[[int, int], bytes]


def twins(read: Read, spans: list[Span]) -> list[list[Any]]:
    """Place, name and first one of each tensor whose bytes stood before. `read(start, length)` gives bytes of the file."""
    found: list[list[Any]] = []
    alike: dict[tuple[str, int, bytes], list[Span]] = {}
    for place, span in enumerate(spans):
        middle = span.offset + span.nbytes // 2
        edge = read(span.offset, min(_EDGE, span.nbytes)) + read(middle, min(_EDGE, span.nbytes - span.nbytes // 2))
        before = alike.setdefault((span.dtype, span.nbytes, edge), [])
        first = next((other for other in before if _digest(read, other) == _digest(read, span)), None) if before else None
        if first is None:
            before.append(span)
        else:
            found.append([place, span.name, first.name])
    return found


def _digest(read: Read, span: Span) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, span.nbytes, _CHUNK):
        digest.update(read(span.offset + start, min(_CHUNK, span.nbytes - start)))
    return digest.digest()
