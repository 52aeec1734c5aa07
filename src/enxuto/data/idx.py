"""The idx files of MNIST and its relatives, plain or gzipped, with every length checked before it is believed.

Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits, "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from enxuto.errors import DataError

UNSIGNED_BYTE = 0x08  # the only element type of the MNIST family
LARGEST_BYTES = 2**31  # no such file comes near it; a lying header cannot make us allocate more
_CHUNK_BYTES = 2**20


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes.

    Shapes: images [samples, height, width] have 3 dimensions, labels [samples] have 1.
    Raises: DataError when the file cannot be read, is no such idx file, or is shorter or longer than its header says.
    """
    try:
        with _open(path) as file:
            shape = _read_header(file, path, dimensions)
            size = math.prod(shape)
            data = _read_at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read: {error}; it is truncated or damaged, fetch it again.") from error
    if len(data) != size:
        fault = "less" if len(data) < size else "more"
        raise DataError(f"'{path}' holds {fault} than the {size} bytes its header {shape} says; fetch it again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _open(path: Path) -> IO[bytes]:
    """The bytes of a file, unzipped where its name ends in .gz."""
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_header(file: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape an idx header gives: two zero bytes, the element type, the dimensions, then each size in big endian."""
    length = 4 + 4 * dimensions
    header = file.read(length)
    wanted = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if header[:4] != wanted:
        raise DataError(
            f"'{path}' starts with {header[:4].hex() or 'nothing'}, not {wanted.hex()}; "
            f"an idx file of unsigned bytes in {dimensions} dimensions is needed."
        )
    if len(header) < length:
        raise DataError(f"'{path}' ends inside its header after {len(header)} of {length} bytes; fetch it again.")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if not 0 < math.prod(shape) <= LARGEST_BYTES:
        raise DataError(f"'{path}' says it holds {shape} values; between 1 and {LARGEST_BYTES} bytes can be read.")
    return shape


def _read_at_most(file: IO[bytes], size: int) -> bytes:
    """The next `size` bytes or what there is, never allocating more than was really read."""
    parts: list[bytes] = []
    while size > 0:
        part = file.read(min(size, _CHUNK_BYTES))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
