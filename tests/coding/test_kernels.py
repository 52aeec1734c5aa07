import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.coding import arrays
from enxuto.coding.class_kernels import line_counts
from enxuto.coding.kernels import _put
from enxuto.coding.model_kernels import PRECISIONS
from enxuto.functional.hot import hot

law = settings(deadline=None, derandomize=True)


@numba.njit
def put_all(states, model, inverse, out, words):
    """The state after each state, and whether a word was written."""
    for i in range(states.size):
        out[i], words[i] = _put(states[i], model, inverse, np.empty(1, np.uint16), 1)


def check(states: np.ndarray, frequency: int, start: int, precision: int) -> None:
    """The kernel's step is that of the paper, in Python's integers."""
    model = np.uint64((frequency << 32 - precision) << 32 | ((1 << precision) - frequency) << 16 | start)
    inverse = (1.0 + 2.0**-40) / np.maximum(np.array([frequency]), 1)  # as `rans_encode` takes it
    out, places = np.empty(states.size, np.uint64), np.empty(states.size, np.int64)
    put_all(states.astype(np.uint64), model, inverse[0], out, places)
    for x, after, place in zip(states.tolist(), out.tolist(), places.tolist(), strict=True):
        full = x >= frequency << 32 - precision
        x >>= 16 * full
        assert after == (x // frequency << precision) + x % frequency + start
        assert place == 1 - full
        assert 1 << 16 <= after < 1 << 32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_quotient_is_exact_beside_every_multiple(precision):
    """Where a quotient in double precision would go wrong first: just below, at and above multiples, and at the ends."""
    chance = np.random.default_rng(precision)
    most = (1 << precision) - 1
    for frequency in {1, 2, 3, 5, 7, most, most - 1, most // 2 + 1, most // 3, *chance.integers(1, most, 40).tolist()}:
        bound = frequency << 32 - precision
        multiples = np.concatenate(
            [chance.integers(1, max(2, bound // frequency), 60), [bound // frequency, 1, 65_536 // frequency]]
        )
        near = (multiples[:, None] * frequency + np.array([-1, 0, 1])).reshape(-1)
        edges = np.array([1 << 16, (1 << 16) + 1, bound - 1, bound, bound + 1, (1 << 32) - 1])
        states = np.concatenate([near, edges, near << 16, (near << 16) + 65_535])
        check(states[(states >= 1 << 16) & (states < 1 << 32)], frequency, (1 << precision) - frequency, precision)


@law
@given(st.data(), st.sampled_from(PRECISIONS))
def test_the_quotient_is_exact_for_any_state_and_frequency(data, precision):
    frequency = data.draw(st.integers(1, (1 << precision) - 1))
    start = data.draw(st.integers(0, (1 << precision) - frequency))
    check(np.array(data.draw(st.lists(st.integers(1 << 16, (1 << 32) - 1), min_size=1))), frequency, start, precision)


def test_the_quotient_is_exact_for_every_state_of_some_frequencies():
    """All states that stay: the whole range of a frequency of 10 of 256 in steps, and of 1 of 16,384 without any."""
    for frequency, precision, step in ((1, 14, 1), (3, 14, 7), (10, 8, 4097)):
        x = np.arange(1 << 16, frequency << 32 - precision, step, dtype=np.int64)
        assert np.array_equal((x.astype(np.float64) * ((1.0 + 2.0**-40) / frequency)).astype(np.int64), x // frequency)


@law
@given(st.integers(0, 9), st.sampled_from(["<u2", "<u4", "<u8"]), st.booleans(), st.integers(1, 50))
def test_planes_are_the_bytes_of_the_rotated_numbers(seed, dtype, rotated, count):
    values = np.random.default_rng(seed).integers(0, 1 << 8 * np.dtype(dtype).itemsize, count, dtype=dtype)
    planes = arrays.split(values, rotated)
    bits = 8 * values.dtype.itemsize
    for i, value in enumerate(values.tolist()):
        turned = (value << 1 | value >> bits - 1) & (1 << bits) - 1 if rotated else value
        assert planes[:, i].tobytes() == turned.to_bytes(bits // 8, "little")
    back = arrays.join(planes, rotated)
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("first", "step"), [(0, 1), (2, 5)])
def test_lines_are_counted_as_numpy_counts_them(axis, first, step):
    codes = np.random.default_rng(0).choice([0, 2, 3, 8], (23, 90)).astype(np.uint8)
    lines = (codes.T if axis else codes)[:, first::step]
    slow = np.array([np.bincount(line, minlength=9) for line in lines])
    assert np.array_equal(line_counts(codes, axis, first, step, 9), slow[:, slow.any(axis=0)])


def test_a_function_that_numba_cannot_keep_on_disk_is_compiled_all_the_same():
    space: dict = {}
    exec("def double(x):\n    return 2 * x", space)
    assert hot(space["double"])(21) == 42
