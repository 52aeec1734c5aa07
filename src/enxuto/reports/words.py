"""Numbers as people read them, in one place for the page and the terminal. A number that is missing is an en dash."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

MISSING = "–"
ALIKE = 1.005  # figures closer than this are shown as the same


def minus(text: str) -> str:
    """The text with a true minus sign."""
    return text.replace("-", "−")


def printable(text: str) -> str:
    """The text without control characters, so that a layer's name cannot steer a terminal.

    >>> printable("fc1\\x1b[2J")
    'fc1�[2J'
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def significant(value: float, digits: int = 3) -> str:
    """A positive or negative number to so many significant digits, never in powers of ten below a million.

    >>> significant(0.01234), significant(1.5), significant(61.27), significant(1234.5)
    ('0.0123', '1.50', '61.3', '1,234')
    """
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    places = digits - 1
    while magnitude >= 10 and places > 0:
        magnitude, places = magnitude / 10, places - 1
    while magnitude < 1 and places < 9:
        magnitude, places = magnitude * 10, places + 1
    return minus(f"{value:,.{places}f}")


def figure(value: float | None) -> str:
    """A figure of a step: whole numbers as they are, others to three significant digits."""
    if value is None:
        return MISSING
    return minus(f"{value:,.0f}") if value == round(value) else significant(value)


def count(value: int | None) -> str:
    """A whole number with thousands apart."""
    return MISSING if value is None else f"{value:,}"


def large(value: int | None) -> str:
    """A large whole number with a letter.

    >>> large(950), large(41_234_000)
    ('950', '41.2 M')
    """
    if value is None:
        return MISSING
    for letter, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{significant(value / size)} {letter}"
    return str(value)


def percent(fraction: float | None, places: int = 2) -> str:
    """A fraction as a percentage.

    >>> percent(0.8952)
    '89.52 %'
    """
    return MISSING if fraction is None else minus(f"{100 * fraction:.{places}f} %")


def quality(value: float | None, is_fraction: bool) -> str:
    """A quality: a percentage when it is a fraction, else four significant digits."""
    if value is None:
        return MISSING
    return percent(value) if is_fraction else significant(value, 4)


def signed(value: float, is_fraction: bool) -> str:
    """A change of quality without its unit, always with a sign.

    >>> signed(-0.0031, True), signed(0.0, True)
    ('−0.31', '0.00')
    """
    shown = f"{100 * value:+.2f}" if is_fraction else f"{value:+.4g}"
    return shown[1:] if float(shown) == 0 else minus(shown)


def change(value: float | None, is_fraction: bool) -> str:
    """A change of quality, in points where the quality is a percentage."""
    if value is None:
        return MISSING
    return f"{signed(value, is_fraction)} points" if is_fraction else signed(value, is_fraction)


def interval(bounds: tuple[float, float] | None, is_fraction: bool) -> str:
    """Both ends of an interval; empty when there is none.

    >>> interval((-0.006, -0.0005), True)
    '−0.60 … −0.05'
    """
    return "" if bounds is None else f"{signed(bounds[0], is_fraction)} … {signed(bounds[1], is_fraction)}"


def milliseconds(value: float | None, beside: float | None = None) -> str:
    """A time given in milliseconds, in the unit that reads best; for times that stand `beside` a larger one, in its unit.

    >>> milliseconds(0.0125), milliseconds(1.234), milliseconds(2500), milliseconds(0.0125, beside=1.234)
    ('12.5 µs', '1.23 ms', '2.50 s', '0.0125 ms')
    """
    if value is None:
        return MISSING
    unit, size = time_unit(max(abs(value), abs(beside or 0.0)))
    return f"{significant(value / size)} {unit}"


def time_unit(largest_ms: float) -> tuple[str, float]:
    """The unit that reads best for times up to this one, and how many milliseconds it has.

    >>> time_unit(0.0125), time_unit(2500)
    (('µs', 0.001), ('s', 1000.0))
    """
    if largest_ms >= 1000:
        return "s", 1000.0
    return ("ms", 1.0) if largest_ms >= 0.1 or largest_ms == 0 else ("µs", 0.001)


def spread(samples: Sequence[float], beside: float | None = None) -> str:
    """The middle half of the samples, in milliseconds; empty when there are too few to speak of one.

    >>> spread([0.05, 0.06, 0.07, 0.2], beside=0.3)
    '0.0575 … 0.103 ms'
    """
    if len(samples) < 4:
        return ""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    (first, unit), last = milliseconds(low, beside).split(" "), milliseconds(high, beside)
    return f"{first} … {last}" if last.endswith(f" {unit}") else f"{first} {unit} … {last}"


def times(before: float | None, after: float | None, less: str, more: str) -> str:
    """How many times less or more there is, in words.

    >>> times(1066, 17.4, "smaller", "larger"), times(1.0, 1.2, "smaller", "larger")
    ('61.3× smaller', '1.20× larger')
    """
    if not before or not after:
        return MISSING
    ratio = before / after
    if abs(ratio - 1) < 0.005:
        return "the same" if before == after else "about the same"
    return f"{significant(ratio)}× {less}" if ratio > 1 else f"{significant(1 / ratio)}× {more}"


def seconds(value: float) -> str:
    """A duration.

    >>> seconds(0.25), seconds(12.34), seconds(100)
    ('0.25 s', '12.3 s', '1 min 40 s')
    """
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{value:.2f} s" if value < 1 else f"{significant(value)} s"


def plural(number: int, noun: str) -> str:
    """A number and its noun.

    >>> plural(1, "layer"), plural(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
