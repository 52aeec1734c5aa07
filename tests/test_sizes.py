import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from enxuto.errors import RangeError
from enxuto.sizes import (
    ample_bytes,
    file_bytes,
    format_bytes,
    module_bytes,
    parse_bytes,
    parse_fraction,
    parse_seconds,
    tensor_bytes,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("100 kB", 100_000),
        ("100kb", 100_000),
        ("1.5 MB", 1_500_000),
        (" 64 KiB ", 65_536),
        ("2GiB", 2**31),
        ("7", 7),
        ("7 B", 7),
        (".5 kB", 500),
        (512, 512),
        (512.4, 512),
    ],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "kB", "100 kilos", "-5 kB", "1,5 MB", "0", 0, -3, "0.2 B", float("nan"), float("inf"), "1e3 kB", None, [5], True]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RangeError, match="100 kB"):
        parse_bytes(text)


@given(st.integers(1, 10**13))
def test_a_size_that_was_shown_is_read_as_nearly_the_same(count):
    shown = format_bytes(count)
    assert parse_bytes(shown) == pytest.approx(count, rel=0.006)
    assert len(shown.split()[0].replace(".", "")) <= 3 or count >= 999_500_000_000


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (12_345, "12.3 kB"),
        (-17_750, "-17.8 kB"),
    ],
)
def test_sizes_are_shown_with_three_digits(count, shown):
    assert format_bytes(count) == shown


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("50 %", 0.5), ("0.25", 0.25), (0.1, 0.1), ("-1%", -0.01)])
def test_fractions_are_read(text, value):
    assert parse_fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "half", "1/2", None, [0.5]])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(RangeError, match=r"0\.5%"):
        parse_fraction(text)


@pytest.mark.parametrize(("text", "value"), [("20m", 1200), ("20 min", 1200), ("1.5h", 5400), ("90s", 90), ("90", 90), (90, 90)])
def test_times_are_read(text, value):
    assert parse_seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "20 d", "-5s", 0, float("nan"), None, [3]])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(RangeError, match="20 min"):
        parse_seconds(text)


def test_bytes_of_tensors_modules_and_files(tmp_path):
    assert tensor_bytes(torch.zeros(3, 5, dtype=torch.float16)) == 30
    assert module_bytes(nn.BatchNorm1d(4)) == 4 * 4 * 4 + 8
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert module_bytes(tied) == 64
    (tmp_path / "a").write_bytes(b"12345")
    assert file_bytes(tmp_path / "a") == 5


@given(st.integers(1, 10**12))
def test_a_size_to_ask_for_is_enough_and_hardly_more(count: int) -> None:
    asked = parse_bytes(ample_bytes(count))
    assert count <= asked <= 1.011 * count + 1


@pytest.mark.parametrize("parse", [parse_bytes, parse_fraction, parse_seconds])
def test_what_is_refused_goes_by_the_name_it_was_given_by(parse):
    with pytest.raises(RangeError, match="limit='much' is not understood"):
        parse("much", "limit")


@pytest.mark.parametrize("text", ["0 MB", "0", 0, 0.0])
def test_no_bytes_are_a_size_where_none_are_allowed(text):
    assert parse_bytes(text, least=0) == 0
    with pytest.raises(RangeError, match="not a positive number of bytes"):
        parse_bytes(text)
