import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codes import best, fit, read_table, write_table
from enxuto.coding.model_kernels import PRECISIONS
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)

counts_of = st.lists(st.integers(0, 10**9), min_size=2, max_size=40).filter(lambda counts: sum(map(bool, counts)) > 1)


@law
@given(counts_of, st.sampled_from(PRECISIONS))
def test_frequencies_sum_to_a_power_of_two_and_every_occurring_symbol_has_one(counts, precision):
    counts = np.array(counts)
    model = fit(counts, precision)
    assert model.frequencies.sum() == 1 << precision
    assert np.array_equal(model.frequencies > 0, counts > 0)


@law
@given(st.lists(st.integers(1, 1000), min_size=3, max_size=3))
def test_rounding_is_as_good_as_trying_every_split(counts):
    counts, total = np.array(counts), 256
    first, second = np.meshgrid(np.arange(1, total), np.arange(1, total))
    splits = np.stack([first, second, total - first - second])[:, first + second < total]
    fewest = -(counts[:, None] * np.log2(splits / total)).sum(0).min()
    assert fit(counts, 8).bits(counts) <= fewest * 1.0005 + 0.01


@law
@given(counts_of, st.sampled_from(PRECISIONS))
def test_a_table_comes_back(counts, precision):
    model = fit(np.array(counts), precision)
    table = write_table(model)
    back, read = read_table(table + b"whatever follows", len(counts))
    assert read == len(table)
    assert back.precision == precision
    assert np.array_equal(back.frequencies, model.frequencies)


def test_a_table_of_sixteen_symbols_of_a_sparse_layer_takes_at_most_twenty_bytes():
    counts = np.random.default_rng(0).integers(600, 1000, 16)
    counts[7] = 223_440
    _, table = best(counts)
    assert len(table) <= 20


def test_a_table_of_three_symbols_among_65536_is_short():
    counts = np.zeros(1 << 16, np.int64)
    counts[[3, 40_000, 65_535]] = [10, 500, 3]
    _, table = best(counts)
    assert len(table) <= 16


def test_more_symbols_than_any_precision_holds_have_no_model():
    assert best(np.ones(1 << 16, np.int64)) is None


@law
@given(st.binary(max_size=40), st.integers(2, 300))
def test_any_bytes_are_a_table_that_sums_up_or_are_refused(data, symbols):
    try:
        model, read = read_table(data, symbols)
    except ArtifactError:
        return
    assert read_table(data[:read], symbols)[1] == read <= len(data)
    assert model.frequencies.sum() == 1 << model.precision
    assert model.frequencies.min() >= 0
    assert model.frequencies.size == symbols


@pytest.mark.parametrize("kept", range(7))
def test_a_table_cut_short_is_refused(kept):
    table = write_table(fit(np.array([1000, 20, 30, 40, 0, 0, 0, 5]), 12))
    assert len(table) == 7
    with pytest.raises(ArtifactError):
        read_table(table[:kept], 8)


@law
@given(counts_of, st.sampled_from(PRECISIONS))
def test_a_table_is_no_longer_than_another_order_would_make_it(counts, precision):
    model = fit(np.array(counts), precision)
    table = write_table(model)
    mode = int(model.frequencies.argmax())
    others = np.delete(model.frequencies, mode)
    orders = [sum(golomb_bits(int(value), order) for value in others) for order in range(precision)]
    assert table[0] >> 4 == precision
    assert orders[table[0] & 15] == min(orders)


def golomb_bits(value: int, order: int) -> int:
    """The length of an exponential Golomb code, by writing it."""
    head = bin((value >> order) + 1)[2:]
    return 2 * len(head) - 1 + order


def bits(*fields: tuple[int, int]) -> bytes:
    """Numbers of so many bits each, highest bit first, filled up with zeros to whole bytes."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    return int(text + "0" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8), "big")


EIGHT, PLAIN = (8, 4), (0, 4)  # precision and order


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([(9, 4), PLAIN, (0, 1), (0b010, 3)], "another precision"),
        ([(0, 4), PLAIN, (0, 1), (0b010, 3)], "no precision"),
        ([EIGHT, PLAIN, (0, 1), (0b000000001_00000001, 17)], "nothing left for the mode"),
        ([EIGHT, PLAIN, (0, 1), (1, 1), (0b010, 3)], "a run of zeros beyond the last symbol"),
        ([EIGHT, PLAIN, (0, 1), (1, 1), (0, 20), (1, 21)], "a number of 20 bits"),
        ([EIGHT, PLAIN, (0, 1), (0b010, 3), (1, 4)], "bits behind the end that are not zero"),
    ],
)
def test_a_table_that_lies_is_refused(fields, why):
    with pytest.raises(ArtifactError):
        read_table(bits(*fields) + bytes(9), 2)
    assert read_table(bits(EIGHT, PLAIN, (0, 1), (0b010, 3)), 2)[0].frequencies.tolist() == [255, 1]


def test_a_mode_that_is_no_symbol_is_refused():
    with pytest.raises(ArtifactError):
        read_table(bits(EIGHT, PLAIN, (3, 2), (0b010, 3), (0b010, 3)), 3)


def test_a_table_that_gives_away_more_than_there_is_is_not_read_to_its_end():
    endless = bits(EIGHT, PLAIN, (0, 16), *[(0b0001111, 7)] * 60_000)
    start = time.process_time()
    with pytest.raises(ArtifactError):
        read_table(endless, 1 << 16)
    assert time.process_time() - start < 10


@law
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300), st.sampled_from(PRECISIONS[1:]))
def test_the_sum_is_settled_as_by_looking_for_the_cheapest_unit_every_time(counts, precision):
    """The heap takes the units that a search through all prices takes, the first of equal ones too."""
    counts = np.array(counts)
    total = 1 << precision
    slow = np.maximum(1, counts * total // counts.sum())
    while missing := total - slow.sum():
        step = 1 if missing > 0 else -1
        slope = np.where(slow + step > 0, -step * counts / (2 * slow + step), np.inf)
        slow[slope.argmin()] += step
    assert np.array_equal(fit(counts, precision).frequencies, slow)
