import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codes import sparse_codes
from enxuto.coding import decode_integers, simple
from enxuto.coding.bits import write_varint
from enxuto.coding.stream import RUNS, read_parts, write_parts
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)


def spread_out(lengths: list[int], others: list[int], mode: int) -> list[int]:
    """What runs mean, in the slowest way."""
    codes, rest = [], list(others)
    for i, length in enumerate(lengths):
        codes += [mode] * length
        if length < 255 and i < len(lengths) - 1:
            codes.append(rest.pop(0))
    assert not rest
    return codes


def stream(lengths: list[int], others: list[int], symbols: int, mode: int = 0, number: int | None = None) -> bytes:
    parts = [simple.encode(np.array(lengths, np.uint8), 256), simple.encode(np.array(others, np.uint8), symbols)]
    return bytes([RUNS]) + write_varint(mode) + write_varint(len(lengths) if number is None else number) + write_parts(parts)


@law
@given(
    st.integers(1, 3000), st.sampled_from([2, 3, 16, 256, 300]), st.sampled_from([0.3, 0.9, 0.99, 0.999, 1.0]), st.integers(0, 9)
)
def test_codes_come_back_from_runs(count, symbols, sparsity, seed):
    codes = sparse_codes(count, symbols, sparsity, seed)
    mode = symbols // 2
    data = simple.encode_runs(codes, mode, symbols)
    back = decode_integers(data, count, symbols)
    assert back.dtype == codes.dtype
    assert np.array_equal(back, codes)


@law
@given(st.lists(st.sampled_from([0, 1, 5, 254, 255, 255]), max_size=12), st.integers(0, 254), st.integers(0, 9))
def test_runs_mean_what_the_format_says(lengths, last, seed):
    lengths = [*lengths, last]
    number = sum(length < 255 for length in lengths) - 1
    others = (1 + np.random.default_rng(seed).integers(0, 3, number)).tolist()
    codes = spread_out(lengths, others, 0)
    if codes:
        assert decode_integers(stream(lengths, others, 4), len(codes), 4).tolist() == codes
        assert simple.encode_runs(np.array(codes, np.uint8), 0, 4) == stream(lengths, others, 4)


@pytest.mark.parametrize("length", [1, 254, 255, 256, 509, 510, 511, 765])
def test_a_single_run_of_any_length_comes_back(length):
    for codes in ([0] * length, [0] * length + [1], [1] + [0] * length):
        data = simple.encode_runs(np.array(codes, np.uint8), 0, 2)
        assert decode_integers(data, len(codes), 2).tolist() == codes


@law
@given(st.binary(max_size=80), st.integers(1, 400), st.sampled_from([1, 2, 16, 256, 300]))
def test_any_bytes_are_runs_or_are_refused(data, count, symbols):
    try:
        codes = decode_integers(bytes([RUNS]) + data, count, symbols)
    except ArtifactError:
        return
    assert codes.size == count
    assert codes.max() < symbols


LIES = {
    "too few": stream([3, 4], [1], 4),
    "too many": stream([3, 9], [1], 4),
    "another code missing": stream([1, 1, 1, 1, 1, 0], [1, 2, 3, 1], 4),
    "another code too many": stream([2, 1, 1, 1, 1], [1, 2, 3, 1, 2], 4),
    "a last run that does not end": stream([9, 255], [1], 4),
    "nothing but long runs": stream([255, 255], [], 4),
    "no runs": stream([], [], 4),
    "more runs than are there": stream([3, 6], [1], 4, number=3),
    "more runs than codes": stream([0] * 12, [1] * 11, 4),
    "a mode that is no symbol": stream([3, 6], [1], 4, mode=4),
    "a huge number of runs": stream([3, 6], [1], 4, number=1 << 60),
    "a part longer than the stream": bytes([RUNS]) + write_varint(0) + write_varint(2) + write_varint(1 << 40) + b"\1\3\6",
    "runs within runs": bytes([RUNS]) + write_varint(0) + write_varint(2) + write_parts([stream([1, 0], [6], 256), b"\0\1"]),
    "nothing": bytes([RUNS]),
}


@pytest.mark.parametrize("lie", LIES)
def test_runs_that_lie_are_refused(lie):
    good = stream([3, 6], [1], 4)
    assert decode_integers(good, 10, 4).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ArtifactError):
        decode_integers(LIES[lie], 10, 4)


def test_what_is_nearly_all_zeros_takes_a_few_bytes_a_code_that_is_not():
    codes = np.zeros(100_000, np.uint8)
    codes[np.random.default_rng(0).choice(codes.size, 200, replace=False)] = 1
    data = simple.encode_runs(codes, 0, 2)
    assert len(read_parts(data[1:], 1 + len(write_varint(0)), 2)) == 2
    assert len(data) < 1000
