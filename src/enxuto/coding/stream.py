"""What all streams share: the first byte names the method, a part inside gives its own length unless it is the last.

The number of elements is not in the stream; whoever keeps the stream keeps the shape. No stream is longer than its raw
elements and one byte. Streams of codes are in `integers`, those of arrays of any type in `arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence

from enxuto.coding.bits import Data, read_varint, write_varint
from enxuto.errors import ArtifactError

METHODS = ("constant", "raw", "static", "adaptive", "classes", "runs", "text", "narrow", "planes", "sparse", "values", "matches")
CONSTANT, RAW, STATIC, ADAPTIVE, CLASSES, RUNS, TEXT, NARROW, PLANES, SPARSE, VALUES, MATCHES = range(12)


def write_constant(value: int) -> bytes:
    """A stream of one value: in as few bytes as it needs, none for 0."""
    return bytes([CONSTANT]) + value.to_bytes((value.bit_length() + 7) // 8, "little")


def read_constant(body: Data, limit: int) -> int:
    """The value that `write_constant` wrote, checked to be below `limit`."""
    value = int.from_bytes(body[:9], "little")
    if len(body) > 8 or value >= limit or (len(body) and body[-1] == 0):
        raise ArtifactError(f"a constant of {len(body)} bytes is not below {limit}; the file is damaged.")
    return value


def write_parts(parts: Sequence[bytes], head: bytes = b"") -> bytes:
    """The parts in a row behind the head, each part but the last behind its length; copied once."""
    lengths = [write_varint(len(part)) for part in parts[:-1]] + [b""]
    return b"".join([head, *(piece for pair in zip(lengths, parts, strict=True) for piece in pair)])


def read_parts(body: Data, at: int, count: int) -> list[Data]:
    """The parts that `write_parts` wrote, from `at` on."""
    parts = []
    for _ in range(count - 1):
        length, at = read_varint(body, at)
        if length > len(body) - at:
            raise ArtifactError(f"a part of {length} bytes does not fit into {len(body) - at}; the file is damaged.")
        parts.append(body[at : at + length])
        at += length
    return [*parts, body[at:]]


def check_filled(data: Data, count: int) -> bool:
    """True when there is something to read; nothing to read must be no bytes.

    Raises: ArtifactError when elements are asked of no bytes, or none of some.
    """
    if bool(count) != bool(len(data)):
        raise ArtifactError(f"{len(data)} bytes are no stream of {count} elements; the file is damaged.")
    return bool(count)


def unknown(method: int, what: str) -> ArtifactError:
    """The error for a method that does not belong there."""
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(METHODS))
    return ArtifactError(f"method {method} does not fit a stream of {what}; this version knows {known}.")
