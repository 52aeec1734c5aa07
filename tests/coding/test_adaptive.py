import time

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codes import sparse_codes
from enxuto.artifact.primer import PRIMER
from enxuto.coding import adaptive, decode_integers, simple
from enxuto.coding.adaptive_kernels import _SCATTER, AT, ORDERS, SLOT_BITS, _model_bit
from enxuto.coding.bits import write_varint
from enxuto.coding.stream import TEXT
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)


@law
@given(st.integers(1, 400), st.integers(1, 30), st.sampled_from([2, 3, 16, 200, 256]), st.integers(0, 9))
def test_the_adaptive_coder_gives_back_every_code(count, stride, symbols, seed):
    codes = sparse_codes(count, symbols, 0.5, seed)
    data = adaptive.encode(codes, min(stride, count), symbols, budget=2 * count + 20)
    assert np.array_equal(adaptive.decode(data, count, symbols), codes)


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.999])
def test_a_long_adaptive_stream_comes_back(sparsity):
    codes = sparse_codes(200_000, 16, sparsity)
    data = adaptive.encode(codes, 500, 16, budget=codes.size)
    assert np.array_equal(adaptive.decode(data, codes.size, 16), codes)


def test_the_adaptive_coder_gives_up_beyond_its_budget():
    codes = sparse_codes(10_000, 256, 0.0)
    assert adaptive.encode(codes, 1, 256, budget=500) is None


def test_columns_that_were_pruned_together_make_the_adaptive_stream_smaller():
    codes = sparse_codes(100 * 500, 16, 0.5).reshape(100, 500)
    codes[:, ::2] = 8
    flat = codes.reshape(-1)
    assert len(adaptive.encode(flat, 500, 16, budget=flat.size)) < 0.85 * len(simple.encode(flat, 16))


@law
@given(st.binary(max_size=120), st.integers(1, 300), st.integers(2, 300))
def test_any_bytes_decode_or_are_refused(data, count, symbols):
    try:
        assert adaptive.decode(data, count, symbols).size == count
    except ArtifactError:
        return


@pytest.mark.parametrize(
    ("stride", "mode", "count", "symbols"),
    [(0, 3, 300, 16), (301, 3, 300, 16), (10, 16, 300, 16), (1, 0, (1 << 20) + 1, 16), (1, 0, 300, 257), (1, 0, 300, 1)],
)
def test_an_adaptive_stream_that_lies_is_refused(stride, mode, count, symbols):
    with pytest.raises(ArtifactError, match="cannot have"):
        adaptive.decode(write_varint(stride) + write_varint(mode) + bytes(40), count, symbols)


def test_an_adaptive_stream_cut_short_or_prolonged_is_refused():
    codes = sparse_codes(300, 16, 0.5)
    data = adaptive.encode(codes, 10, 16, budget=400)
    for wrong in (data[:-6], data[: len(data) // 2], data + b"x" * 6):
        with pytest.raises(ArtifactError):
            adaptive.decode(wrong, codes.size, 16)


@law
@given(st.text(max_size=300), st.text(max_size=50))
def test_a_text_comes_back(text, primer):
    letters, known = text.encode(), primer.encode()
    data = adaptive.encode_text(letters, known)
    assert adaptive.decode_text(data, len(letters), known) == letters


@law
@given(st.binary(max_size=400))
def test_any_letters_are_a_text(letters):
    data = adaptive.encode_text(letters, b"")
    assert adaptive.decode_text(data, len(letters), b"") == letters
    assert len(data) <= 2 * len(letters) + 4


@law
@given(st.binary(max_size=80), st.integers(1, 400), st.sampled_from([b"", b"what was known before"]))
def test_any_bytes_are_a_text_or_are_refused(data, count, primer):
    try:
        assert len(adaptive.decode_text(data, count, primer)) == count
    except ArtifactError:
        return


@numba.njit
def contrary(count, model, state, data):
    """Letters whose every bit is the one that the model thinks less likely: the worst that a writer may meet."""
    chances, weights, stretch, _, _ = model
    coder = np.uint64(state[0]), np.uint64(state[1]), np.uint64(state[3])
    letters = np.zeros(count, np.uint8)
    active, mixed = np.zeros(len(ORDERS), np.int64), np.zeros(len(ORDERS), np.int64)
    for i in range(count):
        for k in range(len(ORDERS)):
            mixed[k] = 0
            for j in range(max(0, i - ORDERS[k]), i):
                mixed[k] = ((mixed[k] + letters[j] + 1) * _SCATTER) & 0xFFFFFFFF
        node = 1
        for _ in range(8):
            total = known = 0
            for k in range(len(ORDERS)):
                place = ((mixed[k] ^ node) * _SCATTER) & 0xFFFFFFFF
                active[k] = ((place ^ place >> 15) * _SCATTER & 0xFFFFFFFF) >> (32 - SLOT_BITS)
                known += chances[k, active[k], 0] >= 1 << 16
            for k in range(len(ORDERS)):
                total += weights[known, k] * np.int64(stretch[(chances[k, active[k], 0] & 0xFFFF) >> 4])
            bit = 1 if total < 0 else 0
            bit, coder = _model_bit(bit, 0, (known, len(ORDERS)), active, model, coder, data, False)
            node = node << 1 | bit
        letters[i] = node - 256
    state[3] = coder[2]
    return letters


@pytest.mark.parametrize("primer", [b"", PRIMER])
def test_a_text_that_always_says_what_was_least_expected_is_written_all_the_same(primer):
    state, count = np.array([0, 1 << 32, 0, 0], np.int64), 20_000
    letters = contrary(count, adaptive._primed(b""), state, np.zeros(4 * count, np.uint8)).tobytes()
    assert state[AT] > 1.01 * count
    for text in (letters, bytes(5000) + letters[:5000], letters[:40]):
        data = adaptive.encode_text(text, primer)
        assert len(data) < 1.8 * len(text) + 8
        assert adaptive.decode_text(data, len(text), primer) == text


def test_a_text_of_another_length_is_refused():
    text = np.random.default_rng(0).bytes(400)
    data = adaptive.encode_text(text, b"")
    for wrong in (data[:-6], data[: len(data) // 2], data + b"x" * 6):
        with pytest.raises(ArtifactError):
            adaptive.decode_text(wrong, len(text), b"")
    with pytest.raises(ArtifactError):
        adaptive.decode_text(data, len(text) // 2, b"")


def test_a_text_longer_than_allowed_is_refused_at_once():
    start = time.process_time()
    with pytest.raises(ArtifactError, match="is longer than 1048576"):
        adaptive.decode_text(bytes(9), adaptive.MAX_TEXT + 1, b"")
    with pytest.raises(ArtifactError, match="is longer than 1048576"):
        decode_integers(bytes([TEXT]) + bytes(9), 1 << 22, 256)
    assert time.process_time() - start < 10


def test_the_longest_text_that_a_few_bytes_can_claim_is_read_or_refused_within_seconds():
    data = adaptive.encode_text(bytes(adaptive.MAX_TEXT), b"")
    assert len(data) < 100
    start = time.process_time()
    assert adaptive.decode_text(data, adaptive.MAX_TEXT, b"") == bytes(adaptive.MAX_TEXT)
    assert time.process_time() - start < 60


def test_a_text_that_resembles_the_primer_is_short():
    primer = b'["fc1.weight.codes","uint8",[300,784],16]'
    assert len(adaptive.encode_text(b'["fc2.weight.codes","uint8",[100,300],16]', primer)) < 15


def test_a_text_leaves_the_primed_model_as_it_was():
    primer, text = b"what both know", b"what one says"
    assert adaptive.encode_text(text, primer) == adaptive.encode_text(text, primer)


def test_no_entry_of_the_table_of_chances_could_round_otherwise_on_another_machine():
    odds = np.arange(-3072, 3072, dtype=np.longdouble) / 256
    exact = 65536 / (1 + np.exp(-odds))
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6


def test_the_table_of_squash_is_the_logistic_function():
    odds = np.arange(-12, 12.5, 0.5)
    assert np.abs(np.array(adaptive.SQUASH) - 65536 / (1 + np.exp(-odds))).max() < 1.1
