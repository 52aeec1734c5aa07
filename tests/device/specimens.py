"""The files that the reader in C must read: every method of coding, every dtype, every shape, and a real network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from codes import static
from enxuto.artifact import container, sections
from enxuto.artifact.container import write
from enxuto.artifact.index import DTYPES, NUMPY
from enxuto.artifact.sections import Section
from enxuto.coding import adaptive, arrays, integers, simple
from enxuto.coding.bits import write_varint
from enxuto.coding.stream import (
    ADAPTIVE,
    CLASSES,
    CONSTANT,
    METHODS,
    NARROW,
    PLANES,
    RAW,
    RUNS,
    SPARSE,
    TEXT,
    write_parts,
)


def scattered(count: int, seed: int = 0) -> np.ndarray:
    """Numbers of 32 bits that look like chance."""
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32)


def plain(name: str, array: np.ndarray, dtype: str | None = None) -> Section:
    return Section(name, dtype or array.dtype.name, array.shape, None, array)


def coded(name: str, array: np.ndarray, symbols: int) -> Section:
    return Section(name, array.dtype.name, array.shape, symbols, array)


def dtypes() -> list[Section]:
    """Each dtype: 0-d, empty, a few, many, one value, and mostly zeros."""
    found = []
    for name in DTYPES:
        dtype = NUMPY[name]
        noise = (scattered(2400) % 251 if dtype.itemsize == 1 else scattered(2400)).astype(np.uint8).tobytes()
        base = scattered(600, 1).astype(np.float32) / 2**32 - 0.5
        many = (
            (base > 0)
            if name == "bool"
            else base.astype(dtype)
            if dtype.kind in "fc"
            else (base * 2000).astype(np.int64).astype(dtype)
        )
        few = np.frombuffer(noise, np.uint8)[: 3 * dtype.itemsize]
        few = (few > 99)[:3] if name == "bool" else few.copy().view(dtype)
        found += [
            plain(f"{name}.scalar", np.array(many[7]), name),
            plain(f"{name}.empty", many[:0].reshape(0, 5), name),
            plain(f"{name}.few", few, name),
            plain(f"{name}.many", many.reshape(20, 30), name),
            plain(f"{name}.too.many", many[:299], name),
            plain(f"{name}.filled", np.full((3, 7), many[3]), name),
            plain(f"{name}.sparse", np.where(scattered(600, 2) % 12 == 0, many, many.dtype.type(0)), name),
        ]
    return found


def codes(rows: int, columns: int, symbols: int, seed: int = 3) -> np.ndarray:
    """Mostly one code; rows differ in how often, so that every method has something to find."""
    chance = scattered(rows * columns, seed).reshape(rows, columns)
    busy = 8 + 56 * (np.arange(rows) % 4 == 1)[:, None]
    found = np.where(chance % 256 < busy, chance // 256 % symbols, symbols // 2)
    return found.astype(np.uint8 if symbols <= 256 else np.uint16)


def forced(path: Path, streams: dict[str, tuple[Section, bytes]], *, plain: bool = False) -> Path:
    """A file whose tensors are these streams, whatever the writer would choose."""
    encode = mock.patch.object(container, "_encode", lambda section, *_, **__: streams[section.name][1])
    with encode, mock.patch.object(sections, "_SMALL", 0):
        write(path, {"forced": True}, [section for section, _ in streams.values()], plain=plain)
    return path


def every_method() -> dict[str, tuple[Section, bytes]]:
    """Codes under each method and numbers of symbols, and elements under each method, with each method in planes and masks."""
    found: dict[str, tuple[Section, bytes]] = {}

    def keep(section: Section, stream: bytes) -> None:
        found[section.name] = section, stream

    for symbols in (1, 2, 3, 16, 200, 256, 257, 1000, 65536):
        for rows, columns in ((64, 72), (1, 1003)):
            array = (
                codes(rows, columns, symbols)
                if symbols < 1000
                else (scattered(rows * columns) % symbols).reshape(rows, columns).astype(np.uint16)
            )
            array = array if columns != 1003 else array.reshape(-1)
            for number, stream in enumerate(
                integers._tried(array.reshape(-1), columns if array.ndim > 1 else 1, symbols, thorough=True)
            ):
                keep(coded(f"{METHODS[stream[0]]}.{symbols}.{rows}.{number}", array, symbols), stream)
    wide = codes(40, 50, 16).astype(np.uint16)  # few symbols in a wide type
    keep(coded("wide", wide, 16), integers.encode_integers(wide.astype(np.uint8), 16))
    text = np.frombuffer(b"The quick brown fox jumps over the lazy dog. " * 9, np.uint8).astype(np.uint16)
    keep(coded("text.wide", text, 256), bytes([TEXT]) + adaptive.encode_text(text.astype(np.uint8).tobytes(), b""))
    long = np.full(3000, 3, np.uint8)
    long[[0, 700, 1955, 2999]] = 1, 2, 5, 6
    for name, array in (
        ("both ends", long),
        ("none", np.full(3000, 3, np.uint8)),
        ("255", np.r_[long[1:256], long[1:511], 1].astype(np.uint8)),
    ):
        keep(coded(f"runs.{name}", array, 8), simple.encode_runs(array, 3, 8))
    for dtype in ("uint16", "float32", "float64", "complex128"):
        values = np.where(scattered(1200, 5) % 5 == 0, scattered(1200, 6) / 2.0**20, 0).astype(NUMPY[dtype])
        values = (
            np.where(scattered(1200, 7) % 3 == 0, values * 1e-9, values).astype(NUMPY[dtype]) if dtype != "uint16" else values
        )
        patterns = arrays.patterns(values)
        kept = patterns[patterns != 0]
        masks = integers._tried((patterns != 0).astype(np.uint8), 1 if values.size % 30 else 30, 2, thorough=True)
        for number, mask in enumerate(masks):
            for tail in (arrays._planes(kept, kept.shape, False), bytes([RAW]) + kept.tobytes()):
                name = f"sparse.{dtype}.{METHODS[mask[0]]}.{number}.{METHODS[tail[0]]}"
                keep(plain(name, values), bytes([SPARSE]) + write_parts([mask, tail]))
        for rotated in (False, True):
            planes = [list(integers._tried(plane, 30, 256, thorough=True)) for plane in arrays.split(patterns, rotated)]
            for number in range(max(map(len, planes))):
                parts = [choices[min(number, len(choices) - 1)] for choices in planes]
                keep(plain(f"planes.{dtype}.{rotated}.{number}", values), bytes([PLANES, rotated]) + write_parts(parts))
        small = (patterns & (1 << (8 * patterns.itemsize - 8)) - 1).view(values.dtype)
        keep(plain(f"narrow.{dtype}", small), arrays._narrow(arrays.patterns(small)))
        keep(plain(f"raw.{dtype}", values), bytes([RAW]) + patterns.tobytes())
        keep(plain(f"constant.{dtype}", np.full(60, values[1])), arrays.write_constant(int(arrays.patterns(values[1])[0])))
        zeros = np.zeros(60, values.dtype)
        mask = bytes([CONSTANT])
        keep(plain(f"nothing.{dtype}", zeros), bytes([SPARSE]) + write_parts([mask, b""]))
    return found


def rare() -> dict[str, tuple[Section, bytes]]:
    """What a reader takes though our writer never makes it."""
    one = np.arange(12, dtype=np.uint32) % 5
    mask = simple.encode_raw((one != 0).astype(np.uint8), 2)
    kept = one[one != 0].astype("<u4")
    narrow = bytes([NARROW]) + kept.astype(np.uint8).tobytes()
    return {"nested": (plain("nested", one), bytes([SPARSE]) + write_parts([mask, narrow]))}


def stream_of(method: str, array: np.ndarray, symbols: int) -> bytes:
    """A stream of these codes under this method."""
    flat, (rows, stride) = array.reshape(-1), array.shape if array.ndim > 1 else (1, 1)
    if method == "constant":
        return simple.encode(flat[:1].repeat(flat.size), symbols)
    if method == "raw":
        return simple.encode_raw(flat, symbols)
    if method == "static":
        return static(flat, symbols)
    if method == "classes":
        of = (np.arange(rows) % 2).astype(np.uint8)
        parts = [stream_of("static", array[of == each].reshape(-1), symbols) for each in (0, 1)]
        return bytes([CLASSES]) + write_varint(2 * stride) + bytes([2]) + write_parts([stream_of("static", of, 2), *parts])
    if method == "runs":
        mode = int(np.bincount(flat).argmax())
        gaps, others = np.diff(np.flatnonzero(np.r_[1, flat != mode, 1])) - 1, flat[flat != mode]
        parts = [static(gaps.astype(np.uint8), 256), static(others, symbols)]
        return bytes([RUNS]) + write_varint(mode) + write_varint(gaps.size) + write_parts(parts)
    if method == "adaptive":
        body = adaptive.encode(flat, stride, symbols, 2 * flat.size + 64)
        assert body is not None
        return bytes([ADAPTIVE]) + body
    return bytes([TEXT]) + adaptive.encode_text(flat.tobytes(), b"")


def tiny() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Small files, one for each method, that attacks change."""
    for method in METHODS[:NARROW]:
        array = codes(8, 9, 4, seed=9)
        array[:] = 3 if method == "constant" else array
        symbols = 256 if method == "text" else 4
        section, stream = coded(method, array, symbols), stream_of(method, array, symbols)
        yield method, lambda path, section=section, stream=stream: forced(path, {section.name: (section, stream)}, plain=True)
    values = np.where(scattered(40, 4) % 3 == 0, scattered(40), 0).astype(np.uint32).view(np.float32)
    patterns = arrays.patterns(values)
    elements = {"planes": arrays._planes(patterns, values.shape, False), "sparse": arrays._sparse(patterns, values.shape, False)}
    elements["narrow"] = arrays._narrow(patterns & 0xFFFF)
    for name, stream in elements.items():
        array = (patterns & 0xFFFF).view(np.float32) if name == "narrow" else values
        section = plain(name, array)
        yield name, lambda path, section=section, stream=stream: forced(path, {section.name: (section, stream)}, plain=True)
    some = [
        plain("a", np.float32([1, 2])),
        plain("e.a", np.float32([[3], [4]])),
        coded("b", codes(3, 4, 4), 4),
        plain("c", np.zeros((2, 0))),
        plain("d", np.array(True)),
    ]
    yield "coded index", lambda path: write(path, {"a": [1]}, some)
    yield "plain index", lambda path: write(path, {"a": [1]}, some, plain=True)
