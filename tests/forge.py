"""Files for the tests of the format: one that holds everything, and forgers who know the format as well as the reader.

A forged file says whatever its test wants, and all its checksums are right.
"""

import zlib
from contextlib import suppress
from itertools import pairwise

import numpy as np

from enxuto.artifact.container import Reader
from enxuto.artifact.index import DTYPES, NUMPY, blocks, read_index
from enxuto.artifact.primer import PRIMER
from enxuto.artifact.sections import Section
from enxuto.coding.adaptive import decode_text, encode_text
from enxuto.coding.bits import read_varint, write_varint
from enxuto.errors import ArtifactError

START = b"\x93NXT\x02"


def plain(name: str, array: np.ndarray, dtype: str | None = None) -> Section:
    return Section(name, dtype or array.dtype.name, array.shape, None, array)


def coded(name: str, array: np.ndarray, symbols: int) -> Section:
    return Section(name, array.dtype.name, array.shape, symbols, array)


def same(a: Section, b: Section) -> bool:
    """True when both sections are equal bit for bit."""
    heads = (a.name, a.dtype, a.shape, a.symbols, a.array.dtype, a.array.shape)
    return heads == (b.name, b.dtype, b.shape, b.symbols, b.array.dtype, b.array.shape) and a.array.tobytes() == b.array.tobytes()


def scattered(count: int) -> np.ndarray:
    """Numbers of 16 bits that look like chance and are none (Knuth's multiplicative hash, twice), uint32."""
    steps = np.arange(count, dtype=np.uint32) * np.uint32(2_654_435_761)
    return ((steps ^ steps >> np.uint32(15)) * np.uint32(2_246_822_519)) >> np.uint32(16)


def everything() -> tuple[dict, list[Section]]:
    """A file with every method and dtype, from integers alone, so that it is the same on every machine."""
    chance = scattered(8192)
    low, high = chance % 6, 6 + chance % 6
    rows = np.where((scattered(128) % 2 == 1)[:, None], low.reshape(128, 64), high.reshape(128, 64))
    half = (0x3C00 + chance[:24] % 512).astype(np.uint16)
    meta = {"edits": [{"path": "fc1", "coded": {"weight": ["table", 3]}, "größe": 0.5, "none": [None, True, -7, "\u2028"]}]}
    sections = [
        coded("filled", np.full((9, 5), 3, np.uint8), 4),
        coded("noise", (chance[:300] % 16).astype(np.uint8).reshape(20, 15), 16),
        coded("many", np.where(chance[:3000] % 8 < 6, 0, chance[:3000] % 300).astype(np.uint16), 300),
        coded(
            "fc1.coded.weight.codes",
            np.where(chance[:600] % 16 < 12, 3, chance[:600] // 16 % 8).astype(np.uint8).reshape(30, 20),
            8,
        ),
        coded("rows", rows.astype(np.uint8), 16),
        coded("columns", np.ascontiguousarray(rows.T).astype(np.uint8), 16),
        coded("gaps", np.where(np.arange(8192) % 41 == 40, 1 + chance % 3, 0).astype(np.uint8), 4),
        plain("text", np.frombuffer(b"the quick brown fox jumps over the lazy dog, " * 9, np.uint8)),
        plain("few", np.array([3, 200, 7])),
        plain("sparse", np.where(chance[:1200] % 16 == 1, chance[:1200], 0).astype(np.uint32).reshape(40, 30)),
        plain("fc1.bias", (half.astype(np.uint32) << 16).view(np.float32)),
        plain("fc2.bias", (half[:10].astype(np.uint32) << 16).view(np.float32).reshape(5, 2)),
        plain("odd", np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000], np.uint32).view(np.float32)),
        plain("count", np.array(1000)),
        coded("one", np.zeros((2, 0, 3), np.uint8), 1),
        coded("only", np.zeros((3, 2), np.uint8), 1),
        coded("most", scattered(50).astype(np.uint16), 65_536),
    ]
    for dtype in DTYPES:
        size = NUMPY[dtype].itemsize
        raw = (chance[: 20 * size] % (2 if dtype == "bool" else 256)).astype(np.uint8)
        sections.append(plain(f"a.{dtype}", raw.view(NUMPY[dtype]).reshape(5, 4), dtype))
    return meta, sections


Row = tuple[bytes, bytes]


def row(dtype: str | int, shape: tuple[int, ...], symbols: int = 0, axes: int | None = None, shelf: int = 0) -> Row:
    """What an index says of one tensor: its kind and its sizes."""
    kind = dtype if isinstance(dtype, int) else DTYPES.index(dtype)
    numbers = kind, symbols, len(shape) if axes is None else axes, shelf
    return b"".join(map(write_varint, numbers)), b"".join(write_varint(size + 1) for size in shape)


def text(
    meta: bytes = b"{}", names: tuple[bytes, ...] = (), rows: tuple[Row, ...] = (), lengths: tuple[int, ...] = (), **lies: int
) -> bytes:
    """The text of an index; `count`, `meta_length`, `kinds` and `choice` (of the last tensor) may lie."""
    kinds = list(dict.fromkeys(kind for kind, _ in rows))
    choices = [kinds.index(kind) for kind, _ in rows]
    if "choice" in lies:
        choices[-1] = lies["choice"]
    return b"".join(
        [
            *(write_varint(lies.get("count", len(names))), *(name + b"\0" for name in names)),
            *(write_varint(lies.get("meta_length", len(meta))), meta),
            *(write_varint(lies.get("kinds", len(kinds))), *kinds, *map(write_varint, choices)),
            *(sizes for _, sizes in rows),
            *map(write_varint, lengths),
        ]
    )


def forged(
    text: bytes,
    streams: bytes = b"",
    lengths: tuple[int, ...] = (),
    *,
    coded: bool = False,
    letters: int | None = None,
    size: int | None = None,
    behind: bytes = b"",
) -> bytes:
    """A file with this index, these streams and all checksums right; `letters`, `size` and `behind` lie about the index."""
    body = encode_text(text, PRIMER) if coded else text
    said = (len(text) if coded else 0) if letters is None else letters
    index = write_varint(said) + write_varint(len(body) if size is None else size) + body
    return sealed(streams, index + checksums(streams, lengths) + behind)


def checksums(streams: bytes, lengths: tuple[int, ...] | list[int]) -> bytes:
    """What stands for the blocks of these streams."""
    ends = np.cumsum([0, *lengths]).tolist()
    return b"".join(zlib.crc32(streams[ends[a] : ends[b]]).to_bytes(4, "little") for a, b in blocks(lengths))


def sealed(streams: bytes, tail: bytes, start: bytes = START) -> bytes:
    """A file of these streams and this index with checksums; its length and last checksum are right."""
    tail += write_varint(len(tail))[::-1]
    return start + streams + tail + zlib.crc32(tail, zlib.crc32(start)).to_bytes(4, "little")


def mended(data: bytes) -> bytes:
    """The damaged file with every checksum made right that can be found; no byte moves."""
    end = len(data) - 4
    try:
        length, used = read_varint(data[max(0, end - 9) : end][::-1], 0)
    except ArtifactError:
        return data
    first = end - used - length
    if first < len(START):
        return data
    tail = bytearray(data[first:end])
    with suppress(ArtifactError):
        _, _, lengths, behind = read_index(bytes(tail[:length]))
        if sum(lengths) <= first - len(START) and length - behind == 4 * len(blocks(lengths)):
            tail[behind:length] = checksums(data[len(START) :], lengths)
    return data[:first] + tail + zlib.crc32(tail, zlib.crc32(data[: len(START)])).to_bytes(4, "little")


def taken_apart(path) -> tuple[bytes, list[bytes]]:
    """The text of the index, and every stream."""
    with Reader(path) as reader:
        data, ends = reader._bytes(0, reader.size), reader._places
    end = len(data) - 4
    length, used = read_varint(data[max(0, end - 9) : end][::-1], 0)
    tail = data[end - used - length : end - used]
    letters, at = read_varint(tail, 0)
    size, at = read_varint(tail, at)
    body = tail[at : at + size]
    whole = decode_text(body, letters, PRIMER) if letters else body
    return whole, [data[a:b] for a, b in pairwise(ends)]
