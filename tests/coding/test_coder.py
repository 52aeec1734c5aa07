import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codes import best, fit, read_table, sparse_codes, static, write_table
from enxuto.coding import simple
from enxuto.coding.model_kernels import PRECISIONS
from enxuto.coding.stream import STATIC
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)
LANES = 8


def plain_decode(data: bytes, count: int, symbols: int) -> list[int]:
    """The static stream read one symbol after another with Python's integers: slow and obvious."""
    data = data[1:]
    model, at = read_table(data, symbols)
    states = [int.from_bytes(data[at + 4 * lane : at + 4 * lane + 4], "little") for lane in range(LANES)]
    words = [int.from_bytes(data[place : place + 2], "little") for place in range(at + 4 * LANES, len(data), 2)]
    symbol_of = [symbol for symbol, frequency in enumerate(model.frequencies.tolist()) for _ in range(frequency)]
    out = []
    for i in range(-(-count // LANES) * LANES):
        state, slot = states[i % LANES], states[i % LANES] % (1 << model.precision)
        out.append(symbol_of[slot])
        state = int(model.frequencies[out[-1]]) * (state >> model.precision) + slot - symbol_of.index(out[-1])
        states[i % LANES] = state << 16 | words.pop(0) if state < 1 << 16 else state
    assert words == []
    assert states == [1 << 16] * LANES
    return out[:count]


@law
@given(st.integers(1, 400), st.sampled_from([2, 3, 16, 100, 256, 257, 300, 5000, 65_536]), st.integers(0, 9))
def test_the_static_coder_gives_back_every_code(count, symbols, seed):
    codes = sparse_codes(count, symbols, 0.5, seed)
    if np.unique(codes).size > 1:
        back = simple.decode(static(codes, symbols), count, symbols)
        assert back.dtype == codes.dtype
        assert np.array_equal(back, codes)


@law
@given(st.integers(2, 60), st.integers(2, 300), st.integers(0, 9))
def test_the_fast_decoder_agrees_with_the_obvious_one(count, symbols, seed):
    codes = sparse_codes(count, symbols, 0.3, seed)
    if np.unique(codes).size > 1:
        assert plain_decode(static(codes, symbols), count, symbols) == codes.tolist()


@law
@given(st.integers(2, 200), st.sampled_from(PRECISIONS), st.integers(0, 99))
def test_every_model_that_knows_the_codes_codes_them(count, precision, seed):
    """Not only the model that suits them: its frequencies may be as wrong as they like."""
    chance = np.random.default_rng(seed)
    codes = chance.integers(0, 5, count).astype(np.uint8)
    model = fit(chance.integers(1, [2, 10, 10**4, 10**6, 10**9]), precision)
    data = static(codes, 5, model)
    assert np.array_equal(simple.decode(data, count, 5), codes)
    assert plain_decode(data, count, 5) == codes.tolist()


def test_a_stream_that_was_expected_far_shorter_comes_back():
    codes = sparse_codes(100_001, 16, 0.0)
    data = static(codes, 16, size=0.0)
    assert data == static(codes, 16)
    assert np.array_equal(simple.decode(data, codes.size, 16), codes)


@law
@given(st.integers(1, 3000), st.sampled_from([2, 16, 256, 1000]), st.integers(0, 9))
def test_codes_are_counted_as_numpy_counts_them(count, symbols, seed):
    codes = sparse_codes(count, symbols, 0.3, seed)
    assert np.array_equal(simple.count(codes, symbols), np.bincount(codes, minlength=symbols))


def test_the_static_coder_is_as_small_as_constriction():
    constriction = pytest.importorskip("constriction")
    codes = sparse_codes(235_200, 16, 0.95)
    counts = np.bincount(codes, minlength=16)
    peer = constriction.stream.stack.AnsCoder()
    exact = constriction.stream.model.Categorical((counts / codes.size).astype(np.float32), perfect=True)
    peer.encode_reverse(codes.astype(np.int32), exact)
    _, table = best(counts)
    assert len(static(codes, 16)) - len(table) <= peer.get_compressed().nbytes * 1.001 + 20


def test_the_static_coder_is_within_one_percent_of_entropy_and_table():
    codes = sparse_codes(300 * 784, 16, 0.95)
    counts = np.bincount(codes)
    chances = counts[counts > 0] / codes.size
    entropy_bytes = -(chances * np.log2(chances)).sum() * codes.size / 8
    _, table = best(np.bincount(codes, minlength=16))
    assert len(static(codes, 16)) <= 1.005 * entropy_bytes + len(table)


@pytest.mark.parametrize(("count", "symbols"), [(50, 4), (1000, 16), (20_001, 200)])
def test_the_size_is_known_before(count, symbols):
    codes = sparse_codes(count, symbols, 0.5)
    counts = np.bincount(codes, minlength=symbols)
    assert abs(len(simple.encode(codes, symbols)) - simple.estimate(counts)) <= 16 + 0.001 * len(codes)


@law
@given(st.binary(max_size=120), st.integers(1, 300), st.integers(2, 300))
def test_any_bytes_decode_or_are_refused(data, count, symbols):
    try:
        assert simple.decode(bytes([STATIC]) + data, count, symbols).size == count
    except ArtifactError:
        return


def test_a_static_stream_cut_anywhere_or_with_any_bit_flipped_never_breaks_the_reader():
    codes = sparse_codes(300, 16, 0.5)
    data = static(codes, 16)
    for kept in range(len(data)):
        with pytest.raises(ArtifactError):
            simple.decode(data[:kept], codes.size, 16)
    for position in range(8 * len(data)):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        try:
            assert not np.array_equal(simple.decode(bytes(broken), codes.size, 16), codes)
        except ArtifactError:
            continue


def test_a_static_stream_of_another_count_is_refused():
    codes = sparse_codes(304, 16, 0.5)
    data = static(codes, 16)
    for count in (1, 296, 312, 1 << 20):
        with pytest.raises(ArtifactError):
            simple.decode(data, count, 16)


def test_a_table_of_one_symbol_decodes_to_it_alone():
    """No writer of ours makes one, and a reader must not trip over a frequency of all."""
    data = bytes([STATIC]) + write_table(fit(np.array([0, 7]), 14)) + (1 << 16).to_bytes(4, "little") * LANES
    assert simple.decode(data, 100, 2).tolist() == [1] * 100
    with pytest.raises(ArtifactError):
        simple.decode(data[:-1] + b"\1", 100, 2)
