"""Numbers as people read them."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enxuto.reports import words


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(words)
    assert result.attempted >= 10
    assert result.failed == 0


@given(st.floats(1e-6, 1e12))
def test_three_digits_are_never_off_by_more_than_half_a_digit(value: float) -> None:
    shown = float(words.significant(value).replace(",", ""))
    assert abs(shown - value) <= 0.00501 * max(value, 1e-7)


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e6))
def test_the_words_of_a_ratio_say_which_side_is_larger(before: float, after: float) -> None:
    said = words.times(before, after, "smaller", "larger")
    assert ("smaller" in said) == (before / after - 1 >= 0.005)
    assert ("larger" in said) == (1 - before / after >= 0.005)


@pytest.mark.parametrize(("value", "said"), [(0.0, "0.00"), (-0.00001, "0.00"), (0.0125, "+1.25"), (-0.0031, "−0.31")])
def test_a_change_has_a_sign_unless_it_rounds_to_nothing(value: float, said: str) -> None:
    assert words.signed(value, True) == said


def test_a_spread_is_the_middle_half_and_needs_four_samples() -> None:
    assert words.spread([1.0, 2.0, 3.0]) == ""
    assert words.spread([5.0, 1.0, 2.0, 3.0, 4.0]) == "2.00 … 4.00 ms"
    assert words.spread([900.0, 900.0, 1100.0, 1100.0, 1100.0]) == "900 ms … 1.10 s"


def test_what_is_missing_is_a_dash() -> None:
    shown = [words.count(None), words.large(None), words.percent(None), words.quality(None, True), words.figure(None)]
    shown += [words.change(None, False), words.milliseconds(None), words.times(None, 3, "less", "more")]
    assert set(shown) == {words.MISSING}
