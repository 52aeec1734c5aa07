"""Runs of the most frequent code: how many of it stand before each other code, and those others, each a stream of its own.

What is nearly all zeros reads fast so, a symbol for a whole run; and it is smaller where zeros come in long runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from enxuto.coding.bits import Codes, Data, read_varint, write_varint
from enxuto.coding.stream import read_parts, write_parts
from enxuto.errors import ArtifactError

LONGEST = 255  # a run of so many ends without another code behind it; longer ones are several
Encode = Callable[[Codes, int], bytes]
Decode = Callable[[Data, int, int], Codes]


def encode(codes: Codes, mode: int, symbols: int, stream: Encode) -> bytes:
    """The mode, the number of runs, the runs (256 symbols) and the other codes, as parts made by `stream`.

    Shapes: codes [count].
    """
    from enxuto.coding.kernels import split_runs

    others = np.empty(int(np.count_nonzero(codes != mode)), codes.dtype)
    lengths = np.empty(others.size + 1 + codes.size // LONGEST, np.uint8)
    lengths = lengths[: split_runs(codes, mode, lengths, others)]
    return write_parts([stream(lengths, 256), stream(others, symbols)], write_varint(mode) + write_varint(lengths.size))


def decode(data: Data, count: int, symbols: int, stream: Decode) -> Codes:
    """The codes that `encode` wrote.

    Raises: ArtifactError when the runs do not fill exactly `count` codes.
    """
    from enxuto.coding.kernels import join_runs

    mode, at = read_varint(data, 0)
    runs, at = read_varint(data, at)
    if mode >= symbols or not 1 <= runs <= count + 1:
        raise ArtifactError(f"{count} codes cannot be {runs} runs of {mode}; the file is damaged.")
    first, second = read_parts(data, at, 2)
    lengths = stream(first, runs, 256)
    others = int(np.count_nonzero(lengths != LONGEST)) - 1
    codes: Codes = np.full(count, mode, np.uint8 if symbols <= 256 else np.uint16)
    if others < 0 or not join_runs(lengths, stream(second, others, symbols), codes):
        raise ArtifactError(f"runs do not fill {count} codes; the file is damaged.")
    return codes
