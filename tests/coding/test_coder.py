import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.coding import adaptive, coder, models
from enxuto.coding.kernels import hot
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)


def sparse_codes(count: int, symbols: int, sparsity: float, seed: int = 0) -> np.ndarray:
    """Codes around the middle symbol, which a fraction `sparsity` of them is at least."""
    chance = np.random.default_rng(seed)
    codes = np.clip(np.rint(chance.normal(symbols / 2, symbols / 8, count)), 0, symbols - 1)
    codes[chance.random(count) < sparsity] = symbols // 2
    return codes.astype(np.uint8 if symbols <= 256 else np.uint16)


def static(codes: np.ndarray, symbols: int) -> bytes:
    counts = np.bincount(codes, minlength=symbols)
    return coder.encode(codes, *models.best(counts))


def plain_decode(data: bytes, count: int, symbols: int) -> list[int]:
    """The static stream read one symbol after another with Python's integers: slow and obvious."""
    length = data[0]
    model = models.read_table(data[1 : 1 + length], symbols)
    numbers = data[1 + length :]
    states = [int.from_bytes(numbers[4 * lane : 4 * lane + 4], "little") for lane in range(4)]
    words = [int.from_bytes(numbers[at : at + 2], "little") for at in range(16, len(numbers), 2)]
    starts = np.cumsum(model.frequencies) - model.frequencies
    out = []
    for i in range(-(-count // 4) * 4):
        state = states[i % 4]
        slot = state % (1 << model.precision)
        symbol = int(np.searchsorted(starts, slot, side="right")) - 1
        while model.frequencies[symbol] == 0:
            symbol -= 1
        state = int(model.frequencies[symbol]) * (state >> model.precision) + slot - int(starts[symbol])
        states[i % 4] = state << 16 | words.pop(0) if state < 1 << 16 else state
        out.append(symbol)
    assert not words
    return out[:count]


@law
@given(st.integers(1, 400), st.sampled_from([2, 3, 16, 100, 256, 300, 5000]), st.integers(0, 9))
def test_the_static_coder_gives_back_every_code(count, symbols, seed):
    codes = sparse_codes(count, symbols, 0.5, seed)
    back = coder.decode(static(codes, symbols), count, symbols)
    assert back.dtype == codes.dtype
    assert np.array_equal(back, codes)


@law
@given(st.integers(1, 60), st.integers(2, 40), st.integers(0, 9))
def test_the_fast_decoder_agrees_with_the_obvious_one(count, symbols, seed):
    codes = sparse_codes(count, symbols, 0.3, seed)
    assert plain_decode(static(codes, symbols), count, symbols) == codes.tolist()


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


def test_the_static_coder_is_as_small_as_constriction():
    constriction = pytest.importorskip("constriction")
    codes = sparse_codes(235_200, 16, 0.95)
    counts = np.bincount(codes, minlength=16)
    peer = constriction.stream.stack.AnsCoder()
    exact = constriction.stream.model.Categorical((counts / codes.size).astype(np.float32), perfect=True)
    peer.encode_reverse(codes.astype(np.int32), exact)
    model, table = models.best(counts)
    assert len(coder.encode(codes, model, table)) - len(table) <= peer.get_compressed().nbytes * 1.001 + 20


def test_the_static_coder_is_within_one_percent_of_entropy_and_table():
    codes = sparse_codes(300 * 784, 16, 0.95)
    counts = np.bincount(codes)
    chances = counts[counts > 0] / codes.size
    entropy_bytes = -(chances * np.log2(chances)).sum() * codes.size / 8
    _, table = models.best(np.bincount(codes, minlength=16))
    assert len(static(codes, 16)) <= 1.005 * entropy_bytes + len(table)


def test_columns_that_were_pruned_together_make_the_adaptive_stream_smaller():
    codes = sparse_codes(100 * 500, 16, 0.5).reshape(100, 500)
    codes[:, ::2] = 8
    flat = codes.reshape(-1)
    assert len(adaptive.encode(flat, 500, 16, budget=flat.size)) < 0.85 * len(static(flat, 16))


@law
@given(st.binary(max_size=120), st.integers(1, 300), st.integers(2, 300))
def test_any_bytes_decode_or_are_refused(data, count, symbols):
    for decode in (coder.decode, adaptive.decode):
        try:
            assert decode(data, count, symbols).size == count
        except ArtifactError:
            continue


def test_a_static_stream_cut_anywhere_or_with_any_bit_flipped_never_breaks_the_reader():
    codes = sparse_codes(300, 16, 0.5)
    data = static(codes, 16)
    for kept in range(len(data)):
        with pytest.raises(ArtifactError):
            coder.decode(data[:kept], codes.size, 16)
    for position in range(8 * len(data)):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        try:
            assert not np.array_equal(coder.decode(bytes(broken), codes.size, 16), codes)
        except ArtifactError:
            continue


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


def test_a_text_that_resembles_the_primer_is_short():
    primer = b'["fc1.weight.codes","uint8",[300,784],16]'
    assert len(adaptive.encode_text(b'["fc2.weight.codes","uint8",[100,300],16]', primer)) < 15


def test_no_entry_of_the_table_of_chances_could_round_otherwise_on_another_machine():
    odds = np.arange(-3072, 3072, dtype=np.longdouble) / 256
    exact = 65536 / (1 + np.exp(-odds))
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6


def test_a_function_that_numba_cannot_keep_on_disk_is_compiled_all_the_same():
    space: dict = {}
    exec("def double(x):\n    return 2 * x", space)
    assert hot(space["double"])(21) == 42
