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
    places = np.flatnonzero(codes != mode)
    gaps = np.diff(places, prepend=-1, append=codes.size) - 1
    longs = gaps // LONGEST
    ends = np.cumsum(longs + 1)
    lengths = np.full(int(ends[-1]), LONGEST, np.uint8)
    lengths[ends - 1] = gaps % LONGEST
    return write_varint(mode) + write_varint(lengths.size) + write_parts([stream(lengths, 256), stream(codes[places], symbols)])


def decode(data: Data, count: int, symbols: int, stream: Decode) -> Codes:
    """The codes that `encode` wrote.

    Raises: ArtifactError when the runs do not fill exactly `count` codes.
    """
    mode, at = read_varint(data, 0)
    runs, at = read_varint(data, at)
    if mode >= symbols or not 1 <= runs <= count + 1:
        raise ArtifactError(f"{count} codes cannot be {runs} runs of {mode}; the file is damaged.")
    first, second = read_parts(data, at, 2)
    lengths = stream(first, runs, 256).astype(np.int64)
    single = lengths < LONGEST
    others = int(single.sum()) - 1
    places = np.cumsum(lengths + single)
    if others < 0 or not single[-1] or places[-1] != count + 1:
        raise ArtifactError(f"runs do not fill {count} codes; the file is damaged.")
    codes: Codes = np.full(count, mode, np.uint8 if symbols <= 256 else np.uint16)
    codes[places[single][:-1] - 1] = stream(second, others, symbols)
    return codes
