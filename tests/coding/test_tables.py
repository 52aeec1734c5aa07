"""Tables are found in every kind of stream, and what a lying stream says of them is refused."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codes import read_table
from enxuto.coding import encode_array, encode_integers, simple
from enxuto.coding.arrays import array_costs
from enxuto.coding.bits import packed_bytes, width, write_varint
from enxuto.coding.integers import costs
from enxuto.coding.stream import CLASSES, METHODS, PLANES, RAW, RUNS, SPARSE, STATIC, write_parts
from enxuto.coding.tables import table_bytes
from enxuto.errors import ArtifactError


def bell(count=5000, symbols=15, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(symbols / 2, symbols / 8, count), 0, symbols - 1).astype(np.uint8)


STATIC_STREAM = simple.encode(bell(), 15)
TABLE = read_table(STATIC_STREAM[1:], 15)[1]
WIDE_STREAM = simple.encode(bell(symbols=200), 256)
WIDE_TABLE = read_table(WIDE_STREAM[1:], 256)[1]


def test_a_static_stream_has_one_table():
    assert STATIC_STREAM[0] == STATIC
    assert table_bytes(STATIC_STREAM, 15) == TABLE > 4


def test_constant_raw_and_empty_streams_have_none():
    assert table_bytes(b"", 15) == 0
    assert table_bytes(encode_integers(np.zeros(9, np.uint8), 15), 15) == 0
    assert table_bytes(encode_integers(np.random.default_rng(0).integers(0, 256, 9999).astype(np.uint8), 256), 256) == 0


def test_tables_in_parts_are_counted():
    classes = bytes([CLASSES]) + write_varint(20) + b"\2" + write_parts([b"\0", STATIC_STREAM, STATIC_STREAM])
    runs = bytes([RUNS]) + b"\0\5" + write_parts([WIDE_STREAM, STATIC_STREAM])
    planes = bytes([PLANES, 0]) + write_parts([WIDE_STREAM, b"\0"])
    mask = simple.encode(np.tile(np.array([0] * 9 + [1], np.uint8), 999), 2)
    assert table_bytes(classes, 15) == 2 * TABLE
    assert table_bytes(runs, 15) == WIDE_TABLE + TABLE
    assert table_bytes(planes, 256, 2) == WIDE_TABLE
    assert table_bytes(bytes([SPARSE]) + write_parts([mask, planes]), 256, 2) == read_table(mask[1:], 2)[1] + WIDE_TABLE
    assert table_bytes(bytes([SPARSE]) + write_parts([mask, bytes([RAW]) + b"\2" * 9]), 256, 2) == read_table(mask[1:], 2)[1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "complex64"])
def test_an_array_has_the_tables_of_its_planes(dtype):
    values = (np.random.default_rng(0).normal(size=(40, 100)) * 50).astype(dtype)
    stream = encode_array(values, fast=True)
    assert stream[0] in (PLANES, SPARSE)
    assert 4 < table_bytes(stream, 256, min(8, values.itemsize)) < len(stream) / 4


@given(st.binary(max_size=60), st.sampled_from([1, 2, 15, 256]), st.sampled_from([1, 2, 8]), st.integers(0, 9))
def test_any_bytes_are_counted_or_refused(body, symbols, wide, method):
    with contextlib.suppress(ArtifactError):
        assert table_bytes(bytes([method]) + body, symbols, wide) >= 0


def test_streams_inside_streams_end():
    for method, head in ((CLASSES, b"\0\1"), (RUNS, b"\0\0"), (SPARSE, b""), (PLANES, b"\0")):
        stream = b""
        for _ in range(3000):
            stream = bytes([method]) + head + (write_varint(len(stream)) + stream) * (method != SPARSE) + b"\0" + stream[:0]
            stream = stream if len(stream) < 1 << 16 else stream[:1000]
        with contextlib.suppress(ArtifactError):
            table_bytes(stream, 15, 8)


@pytest.mark.parametrize("symbols", [2, 3, 7, 15, 60])
def test_no_stream_is_longer_than_raw_and_a_byte(symbols):
    rng = np.random.default_rng(symbols)
    for count in range(20, 1500, 7):
        codes = rng.choice(symbols, count, p=rng.dirichlet(np.full(symbols, rng.choice([0.3, 1, 3, 10])))).astype(np.uint8)
        for stream in (simple.encode(codes, symbols), encode_integers(codes, symbols, fast=True)):
            assert len(stream) <= 1 + packed_bytes(count, width(symbols))


# What each coder would take


@pytest.mark.parametrize("count", [1, 3, 8, 9, 100, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat", "int64", "uint16", "complex64", "int8", "bool"])
def test_the_method_used_for_an_array_is_the_smallest_listed(dtype, count):
    rng = np.random.default_rng(count)
    kinds = [rng.normal(size=count), np.repeat(rng.normal(size=1), count), rng.normal(size=count) * (rng.random(count) < 0.1)]
    for values in [*kinds, rng.integers(0, 9, count), np.zeros(count)]:
        array = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat" else values.astype(dtype)
        stream, found = encode_array(array), array_costs(array)
        assert "raw" in found
        assert found[METHODS[stream[0]]] == len(stream) <= min(found.values()) + 1


@pytest.mark.parametrize("symbols", [2, 3, 15, 16, 255, 256])
@pytest.mark.parametrize("count", [1, 10, 1000, 20_000])
def test_the_method_used_for_codes_is_the_smallest_listed(count, symbols):
    rng = np.random.default_rng(symbols)
    for codes in (bell(count, symbols), np.full(count, symbols - 1), rng.integers(0, symbols, count), rng.random(count) < 0.02):
        codes = codes.astype(np.uint8)
        stream, found = encode_integers(codes, symbols), costs(codes, symbols)
        assert "raw" in found
        assert found[METHODS[stream[0]]] == len(stream)
        assert len(stream) <= 1.001 * min(found.values()) + 1


def test_nothing_costs_nothing():
    assert costs(np.empty(0, np.uint8), 15) == array_costs(np.empty(0, np.float32)) == {}
    assert costs(np.zeros(5, np.uint8), 1) == {"constant": 1}
