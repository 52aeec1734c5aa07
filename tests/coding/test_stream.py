import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enxuto.coding import decode_array, decode_integers, encode_array, encode_integers, stream
from enxuto.errors import ArtifactError, RangeError

law = settings(deadline=None, derandomize=True)

DTYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "float16",
    "int32",
    "float32",
    "int64",
    "float64",
    "complex64",
    "complex128",
)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)


@law
@given(st.data(), shapes, st.sampled_from([1, 2, 3, 7, 16, 255, 256, 257, 1000, 65_536]))
def test_integers_come_back_whatever_their_shape(data, shape, symbols):
    dtype = np.uint8 if symbols <= 256 else np.uint16
    codes = data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, symbols - 1)))
    coded = encode_integers(codes, symbols)
    back = decode_integers(coded, codes.size, symbols)
    assert back.dtype == dtype
    assert np.array_equal(back, codes.reshape(-1))
    assert len(coded) <= 1 + (codes.size * (symbols - 1).bit_length() + 7) // 8


@law
@given(st.data(), st.sampled_from(DTYPES), shapes)
def test_arrays_come_back_bit_for_bit(data, dtype, shape):
    dtype = np.dtype(dtype)
    patterns = data.draw(hnp.arrays(np.uint8, (*shape, dtype.itemsize), elements=st.integers(0, 1 if dtype.kind == "b" else 255)))
    array = np.ascontiguousarray(patterns).view(dtype).reshape(shape)
    coded = encode_array(array)
    back = decode_array(coded, dtype, shape)
    assert (back.dtype, back.shape) == (dtype, shape)
    assert back.tobytes() == array.tobytes()
    assert len(coded) <= 1 + array.nbytes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97])
def test_weights_of_every_float_type_come_back_smaller(dtype, sparsity):
    chance = np.random.default_rng(0)
    weights = chance.normal(size=(100, 80)).astype(dtype) * np.asarray(0.05, dtype)
    weights[chance.random(weights.shape) < sparsity] = 0
    weights[3, 4:8] = [np.nan, np.inf, -np.inf, -0.0]
    coded = encode_array(weights)
    assert decode_array(coded, dtype, weights.shape).tobytes() == weights.tobytes()
    assert len(coded) < weights.nbytes * (1 - 0.9 * sparsity) * 0.99


def test_the_payload_of_every_nan_survives():
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0x7FFFFFFF] * 20, np.uint32).view(np.float32)
    assert decode_array(encode_array(nans), "float32", nans.shape).tobytes() == nans.tobytes()


def test_arrays_in_foreign_byte_order_or_not_contiguous_come_back():
    array = np.arange(60, dtype=">i4").reshape(6, 10)[::2, ::-1]
    back = decode_array(encode_array(array), array.dtype, array.shape)
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    ("array", "most"),
    [
        (np.random.default_rng(0).normal(size=10).astype(np.float32), 41),
        (np.zeros(10_000, np.float32), 1),
        (np.array(1000), 3),
        (np.ones(64, np.float32), 5),
        (np.arange(5), 6),
    ],
)
def test_small_arrays_cost_at_most_one_byte_more_than_they_hold(array, most):
    assert len(encode_array(array)) <= most


def test_each_method_is_chosen_where_it_is_smallest():
    chance = np.random.default_rng(0)
    skewed = chance.choice(16, size=100_000, p=[0.9] + [0.1 / 15] * 15).astype(np.uint8)
    runs = np.repeat(np.arange(16, dtype=np.uint8), 50)
    assert encode_integers(np.full(9, 3, np.uint8), 16)[0] == stream.CONSTANT
    assert encode_integers(chance.integers(0, 16, 5000).astype(np.uint8), 16)[0] == stream.RAW
    assert encode_integers(skewed, 16)[0] == stream.STATIC
    assert encode_integers(runs, 16)[0] == stream.ADAPTIVE
    assert encode_array(np.arange(100))[0] in (stream.NARROW, stream.PLANES)
    assert encode_array(chance.normal(size=5000).astype(np.float32))[0] == stream.PLANES
    assert encode_array((chance.random(5000) < 0.1) * chance.normal(size=5000))[0] == stream.SPARSE


def test_a_large_tensor_is_coded_adaptively_only_when_a_part_of_it_gains():
    chance = np.random.default_rng(0)
    codes = (chance.random((600, 400)) < 0.1).astype(np.uint8) * chance.integers(1, 8, (600, 400), np.uint8)
    assert encode_integers(codes, 8)[0] == stream.STATIC
    codes[:, chance.random(400) < 0.5] = 0
    coded = encode_integers(codes, 8)
    assert coded[0] == stream.ADAPTIVE
    assert np.array_equal(decode_integers(coded, codes.size, 8), codes.reshape(-1))


def test_sixty_five_thousand_symbols_that_all_occur_come_back():
    codes = np.random.default_rng(0).permutation(65_536).astype(np.uint16)
    assert np.array_equal(decode_integers(encode_integers(codes, 65_536), codes.size, 65_536), codes)


@pytest.mark.parametrize("symbols", [0, 65_537])
def test_an_impossible_number_of_symbols_is_refused(symbols):
    with pytest.raises(RangeError, match=f"symbols={symbols}"):
        encode_integers(np.zeros(3, np.uint8), symbols)


def test_codes_that_are_no_symbols_are_refused():
    with pytest.raises(RangeError, match="give symbols=8"):
        encode_integers(np.array([7], np.uint8), 4)
    with pytest.raises(RangeError, match="int64"):
        encode_integers(np.array([1, 2]), 4)


@law
@given(st.binary(max_size=80), st.integers(0, 200), st.sampled_from([1, 2, 16, 256, 300]), st.sampled_from(DTYPES))
def test_any_bytes_are_a_stream_of_the_asked_size_or_are_refused(data, count, symbols, dtype):
    for method in range(8):
        body = bytes([method]) + data
        with suppress(ArtifactError):
            codes = decode_integers(body, count, symbols)
            assert codes.size == count
            assert codes.size == 0 or codes.max() < symbols
        with suppress(ArtifactError):
            assert decode_array(body, dtype, (count,)).shape == (count,)


def test_importing_the_package_of_coders_loads_neither_torch_nor_numba():
    code = "import sys, enxuto.coding; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
