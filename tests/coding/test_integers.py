from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enxuto.coding import adaptive, decode_array, decode_integers, encode_integers, integers, simple, stream
from enxuto.coding.stream import METHODS
from enxuto.errors import ArtifactError, RangeError

law = settings(deadline=None, derandomize=True)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)
SYMBOLS = [1, 2, 3, 7, 16, 255, 256, 257, 1000, 65_536]


@law
@given(st.data(), shapes, st.sampled_from(SYMBOLS))
def test_integers_come_back_whatever_their_shape(data, shape, symbols):
    dtype = np.uint8 if symbols <= 256 else np.uint16
    codes = data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, symbols - 1)))
    coded = encode_integers(codes, symbols)
    back = decode_integers(coded, codes.size, symbols)
    assert back.dtype == dtype
    assert back.flags.writeable
    assert np.array_equal(back, codes.reshape(-1))
    assert len(coded) <= 1 + (codes.size * (symbols - 1).bit_length() + 7) // 8


def test_each_method_is_chosen_where_it_is_smallest():
    chance = np.random.default_rng(0)
    skewed = chance.choice(16, size=100_000, p=[0.9] + [0.1 / 15] * 15).astype(np.uint8)
    steps = np.repeat(np.arange(16, dtype=np.uint8), 50)
    scales = np.array([0.5, 1, 3, 6])[chance.integers(0, 4, 512)][:, None]
    rows = np.clip(np.rint(16 + scales * chance.normal(size=(512, 300))), 0, 31).astype(np.uint8)
    gaps = np.where(np.arange(9000) % 61 == 60, 1 + chance.integers(0, 3, 9000), 0).astype(np.uint8)
    words = np.frombuffer(b"the quick brown fox jumps over the lazy dog, " * 9, np.uint8)
    for codes, symbols, method in (
        (np.full(9, 3, np.uint8), 16, stream.CONSTANT),
        (chance.integers(0, 16, 5000).astype(np.uint8), 16, stream.RAW),
        (skewed, 16, stream.STATIC),
        (steps, 16, stream.ADAPTIVE),
        (rows, 32, stream.CLASSES),
        (gaps, 4, stream.RUNS),
        (words, 256, stream.TEXT),
    ):
        coded = encode_integers(codes, symbols)
        assert METHODS[coded[0]] == METHODS[method]
        assert np.array_equal(decode_integers(coded, codes.size, symbols), codes.reshape(-1))


def test_fast_codes_what_is_mostly_one_code_as_runs_and_leaves_the_slow_coders_out():
    chance = np.random.default_rng(0)
    rows = np.clip(np.rint(16 + np.array([1, 5])[:, None, None] * chance.normal(size=(2, 400, 800))), 0, 31).astype(np.uint8)
    for zeros, size, method in (
        (0.9, 40_000, stream.RUNS),
        (0.9, 4000, stream.STATIC),
        (0.99, 4000, stream.RUNS),
        (0.5, 40_000, stream.STATIC),
        (0.0, 40_000, stream.RAW),
    ):
        codes = ((chance.random((100, size // 100)) >= zeros) * chance.integers(0, 16, (100, size // 100))).astype(np.uint8)
        coded = encode_integers(codes, 16, fast=True)
        assert METHODS[coded[0]] == METHODS[method]
        assert len(coded) <= 1.03 * integers.costs(codes, 16).get("static", np.inf)
        assert np.array_equal(decode_integers(coded, codes.size, 16), codes.reshape(-1))
    assert encode_integers(rows[0], 32, fast=True)[0] == stream.STATIC  # too few codes to look for classes, and none there
    coded = encode_integers(rows.reshape(800, 800), 32, fast=True)
    assert coded[0] == stream.CLASSES
    assert np.array_equal(decode_integers(coded, rows.size, 32), rows.reshape(-1))


def test_the_smallest_of_all_methods_is_kept_of_a_small_tensor():
    chance = np.random.default_rng(0)
    for sparsity in (0.0, 0.5, 0.97):
        codes = ((chance.random((60, 50)) >= sparsity) * chance.integers(1, 16, (60, 50))).astype(np.uint8)
        found = integers.costs(codes, 16)
        assert {"raw", "adaptive", "runs"} <= set(found)  # static only where it is smaller than raw
        assert len(encode_integers(codes, 16)) == min(found.values())


def test_costs_are_sizes_of_streams_that_come_back():
    """Each method by itself decodes to the same codes."""
    codes = np.clip(np.rint(np.random.default_rng(0).normal(8, 2, (90, 70))), 0, 15).astype(np.uint8)
    tried = list(integers._tried(codes.reshape(-1), 70, 16, thorough=True))
    assert (
        {METHODS[each[0]] for each in tried} | {"raw"}
        == set(integers.costs(codes, 16))
        >= {"static", "adaptive", "runs", "classes"}
    )
    assert all(np.array_equal(decode_integers(each, codes.size, 16), codes.reshape(-1)) for each in tried)


def test_a_large_tensor_is_coded_adaptively_only_when_a_part_of_it_gains():
    chance = np.random.default_rng(0)
    codes = (chance.random((600, 400)) < 0.1).astype(np.uint8) * chance.integers(1, 8, (600, 400), np.uint8)
    assert encode_integers(codes, 8)[0] in (stream.STATIC, stream.RUNS)
    for band in codes.reshape(3, 200, 400):
        band[:, chance.random(400) < 0.5] = 0
    coded = encode_integers(codes, 8)
    assert coded[0] == stream.ADAPTIVE
    assert np.array_equal(decode_integers(coded, codes.size, 8), codes.reshape(-1))


def test_sixty_five_thousand_symbols_that_all_occur_come_back():
    codes = np.random.default_rng(0).permutation(65_536).astype(np.uint16)
    assert np.array_equal(decode_integers(encode_integers(codes, 65_536), codes.size, 65_536), codes)


def test_few_of_sixty_five_thousand_symbols_come_back():
    codes = np.random.default_rng(0).choice([0, 77, 40_000, 65_535], 5000, p=[0.9, 0.05, 0.04, 0.01]).astype(np.uint16)
    coded = encode_integers(codes.reshape(50, 100), 65_536)
    assert len(coded) < 600
    assert np.array_equal(decode_integers(coded, codes.size, 65_536), codes)


def test_one_symbol_takes_one_byte_and_no_codes_take_none():
    assert encode_integers(np.zeros((300, 7), np.uint8), 1) == b"\0"
    assert decode_integers(b"\0", 2100, 1).tolist() == [0] * 2100
    assert encode_integers(np.zeros(300_000, np.uint8), 1) == encode_integers(np.zeros(300_000, np.uint8), 1, fast=True) == b"\0"
    assert encode_integers(np.zeros((0, 7), np.uint8), 1) == b""
    assert decode_integers(b"", 0, 65_536).dtype == np.uint16
    for symbols in (1, 16, 256):
        for count, data in ((0, b"\0"), (3, b"")):
            with pytest.raises(ArtifactError, match="are no stream of"):
                decode_integers(data, count, symbols)


def test_more_codes_than_the_adaptive_coder_takes_come_back():
    codes = np.zeros(adaptive.MAX_CODES + 5, np.uint8)
    codes[:: 1 << 12] = 3
    coded = encode_integers(codes, 4)
    assert len(coded) < 300
    assert np.array_equal(decode_integers(coded, codes.size, 4), codes)


def test_the_entropy_is_that_of_shannon():
    codes = np.repeat(np.array([0, 1, 2], np.uint8), [8, 4, 4])
    assert integers.entropy_bytes(codes, 5) == 3.0
    assert np.array_equal(simple.count(codes, 5), [8, 4, 4, 0, 0])


@pytest.mark.parametrize("symbols", [0, 65_537])
def test_an_impossible_number_of_symbols_is_refused(symbols):
    with pytest.raises(RangeError, match=f"symbols={symbols}"):
        encode_integers(np.zeros(3, np.uint8), symbols)


@pytest.mark.parametrize(("count", "symbols"), [(3, 0), (3, -5), (3, 65_537), (-1, 16)])
def test_what_cannot_have_been_written_is_not_read(count, symbols):
    with pytest.raises(RangeError, match="cannot be"):
        decode_integers(b"\0\0", count, symbols)


def test_any_bytes_like_object_is_read():
    coded = encode_integers(np.arange(16, dtype=np.uint8).repeat(50), 16, fast=True)
    found = [decode_integers(kind(coded), 800, 16) for kind in (bytes, bytearray, memoryview)]
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize("symbols", [256, 1000, 65_536])
def test_many_rare_symbols_are_not_coded_under_a_coarse_model(symbols):
    """What makes small layers fast to read must not cost much where there are many symbols."""
    chance = np.random.default_rng(0)
    codes = np.r_[np.zeros(6000), np.ones(6000), 2 + chance.integers(0, min(symbols, 1200) - 2, 1000)]
    codes = chance.permutation(codes).astype(np.uint8 if symbols <= 256 else np.uint16)
    coded = encode_integers(codes, symbols, fast=True)
    assert len(coded) <= simple.entropy(simple.count(codes, symbols)) * 1.1 + 1000
    assert np.array_equal(decode_integers(coded, codes.size, symbols), codes)


def test_codes_that_are_no_symbols_are_refused():
    with pytest.raises(RangeError, match="give symbols=8"):
        encode_integers(np.array([7], np.uint8), 4)
    with pytest.raises(RangeError, match="int64"):
        encode_integers(np.array([1, 2]), 4)


@law
@given(
    st.binary(max_size=80),
    st.integers(0, 200),
    st.sampled_from([1, 2, 16, 256, 300]),
    st.sampled_from(["bool", "uint8", "int16", "float32", "int64", "complex64", "complex128"]),
)
def test_any_bytes_are_a_stream_of_the_asked_size_or_are_refused(data, count, symbols, dtype):
    for method in range(12):
        body = bytes([method]) + data
        with suppress(ArtifactError):
            codes = decode_integers(body, count, symbols)
            assert codes.size == count
            assert codes.size == 0 or codes.max() < symbols
        with suppress(ArtifactError):
            assert decode_array(body, dtype, (count,)).shape == (count,)


@pytest.mark.parametrize("method", [7, 8, 9, 10, 255])
def test_methods_of_arrays_and_unknown_ones_are_refused_by_name(method):
    with pytest.raises(
        ArtifactError, match=rf"method {method} does not fit a stream of codes; this version knows 0 \(constant\)"
    ):
        decode_integers(bytes([method, 0]), 5, 16)


@pytest.mark.parametrize("symbols", [2, 16, 255, 257])
def test_text_is_only_for_bytes(symbols):
    data = bytes([stream.TEXT]) + adaptive.encode_text(bytes(5), b"")
    assert decode_integers(data, 5, 256).tolist() == [0] * 5
    with pytest.raises(ArtifactError, match="method 6"):
        decode_integers(data, 5, symbols)


@pytest.mark.parametrize(("body", "symbols"), [(b"\x10", 16), (b"\0", 16), (b"\1\0", 16), (b"\0\1", 256), (b"\1" * 9, 256)])
def test_a_constant_that_is_no_symbol_or_longer_than_it_needs_is_refused(body, symbols):
    with pytest.raises(ArtifactError, match="a constant stream of"):
        decode_integers(bytes([stream.CONSTANT]) + body, 5, symbols)


def test_a_code_that_is_no_symbol_is_refused():
    with pytest.raises(ArtifactError, match="a raw stream of 2 bytes is not 2 codes"):
        decode_integers(bytes([stream.RAW]) + b"\x07", 2, 5)
