import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enxuto.coding import decode_array, encode_array, stream
from enxuto.coding.stream import METHODS, write_parts
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)


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
    assert back.flags.writeable
    assert len(coded) <= 1 + array.nbytes


@law
@given(st.data(), st.sampled_from(["uint16", "float32", "float64", "complex128"]), st.integers(1, 200))
def test_arrays_of_few_values_and_many_zeros_come_back(data, dtype, count):
    values = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 3, 200, 40_000]), min_size=count, max_size=count))
    array = np.array(values).astype(dtype)
    assert decode_array(encode_array(array), dtype, array.shape).tobytes() == array.tobytes()


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
    assert encode_array(np.arange(100))[0] in (stream.NARROW, stream.PLANES)
    for array, method in (
        (np.array([3, 200, 7]), stream.NARROW),
        (chance.normal(size=5000).astype(np.float32), stream.PLANES),
        (np.where(chance.random(5000) < 0.1, chance.normal(size=5000), 0), stream.SPARSE),
        (np.full(5000, 0.1), stream.CONSTANT),
        (chance.integers(0, 1 << 63, 500), stream.RAW),
    ):
        assert METHODS[encode_array(array)[0]] == METHODS[method]


def test_a_large_array_without_zeros_in_its_sample_comes_back():
    weights = np.random.default_rng(0).normal(size=1 << 17).astype(np.float32)
    weights[1] = 0
    assert decode_array(encode_array(weights), "float32", weights.shape).tobytes() == weights.tobytes()


PART = bytes([stream.RAW]) + bytes(range(10))
PLANES = bytes([stream.PLANES, 0]) + write_parts([PART] * 4)
SPARSE = bytes([stream.SPARSE]) + write_parts([bytes([stream.RAW, 0b11, 0]), bytes([stream.RAW]) + bytes(range(8))])
LIES = {
    "planes": PLANES[:-12],
    "a plane too many": bytes([stream.PLANES, 0]) + write_parts([PART] * 5),
    "rotated by two": bytes([stream.PLANES, 2]) + PLANES[2:],
    "no plane": bytes([stream.PLANES]),
    "planes in planes": bytes([stream.PLANES, 0]) + write_parts([PLANES, PART, PART, PART]),
    "narrow to nothing": bytes([stream.NARROW]),
    "narrow to all bytes": bytes([stream.NARROW]) + bytes(40),
    "narrow to an odd number of bytes": bytes([stream.NARROW]) + bytes(15),
    "raw but short": bytes([stream.RAW]) + bytes(39),
    "sparse in sparse": bytes([stream.SPARSE]) + write_parts([bytes([stream.CONSTANT, 1]), SPARSE]),
    "sparse with an element missing": SPARSE[:-4],
    "sparse with an element too many": SPARSE + bytes(4),
    "sparse without elements but some bytes": bytes([stream.SPARSE]) + write_parts([bytes([stream.CONSTANT]), b"\0"]),
    "sparse with elements but no bytes": bytes([stream.SPARSE]) + write_parts([bytes([stream.CONSTANT, 1]), b""]),
    "sparse with a mask of three symbols": bytes([stream.SPARSE]) + write_parts([bytes([stream.CONSTANT, 2]), PART]),
    "a constant of five bytes": bytes([stream.CONSTANT]) + b"\1" * 5,
    "a constant with zeros on top": bytes([stream.CONSTANT, 1, 0]),
    "codes": bytes([stream.STATIC]) + bytes(60),
    "text": bytes([stream.TEXT]) + bytes(60),
}


@pytest.mark.parametrize("lie", LIES)
def test_streams_of_arrays_that_lie_are_refused(lie):
    assert decode_array(PLANES, "uint32", (10,)).tolist() == [0x01010101 * i for i in range(10)]
    assert decode_array(SPARSE, "uint32", (10,)).tolist() == [0x03020100, 0x07060504] + [0] * 8
    with pytest.raises(ArtifactError):
        decode_array(LIES[lie], "uint32", (10,))
