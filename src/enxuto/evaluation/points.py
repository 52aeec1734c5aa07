"""Quality and its changes as people say them, one way everywhere: "lost 0.43 points", "at most 2 points"."""

from __future__ import annotations


def is_fraction(*qualities: float) -> bool:
    """True when every quality lies in [0, 1], so that its changes are points: hundredths.

    >>> is_fraction(0.9, 1.0), is_fraction(31.5, 0.9)
    (True, False)
    """
    return all(0 <= quality <= 1 for quality in qualities)


def shown(quality: float, fraction: bool) -> str:
    """A quality.

    >>> shown(0.9137, True), shown(31.52, False)
    ('91.37%', '31.52')
    """
    return f"{quality:.2%}" if fraction else f"{quality:.4g}"


def points(amount: float, fraction: bool) -> str:
    """An amount of quality with its unit.

    >>> points(0.005, True), points(0.01, True), points(0.02, True), points(1.5, False)
    ('0.5 points', '1 point', '2 points', '1.5')
    """
    number = f"{100 * amount if fraction else amount:.4g}"
    return number if not fraction else f"{number} point" if number == "1" else f"{number} points"


def said(change: float, fraction: bool) -> str:
    """What became of the quality.

    >>> said(-0.0043, True), said(0.04, True), said(0.0, True)
    ('lost 0.43 points', 'gained 4 points', 'lost nothing')
    """
    change = round(change, 9)
    if change == 0:
        return "lost nothing"
    return f"{'gained' if change > 0 else 'lost'} {points(abs(change), fraction)}"
