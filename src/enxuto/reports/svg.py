"""Small drawings for a page: text, bars, axes and legends as inline SVG. What they show is decided in charts.py and memory.py.

Ink, lines and paper are variables of style.css, so a drawing follows light, dark and print; `<title>` tells values under the
cursor, and no script is needed. Lengths are units of a sheet WIDTH wide, which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from enxuto.reports import words
from enxuto.sizes import format_bytes

WIDTH = 480
LETTER = 7  # about the width of one at the size of style.css
LINE = 18  # from one line of text to the next
ROW = 36  # of a bar with its words
BEFORE, AFTER = "#8b93a0", "#2e8b6e"
PALETTE = ("#2f6f8f", "#c08a4e", "#4f52a0", "#2e8b6e", "#6b5b7b", "#a8516f", "#7d8a3f", "#8b93a0")  # on light and on dark paper


@dataclass(frozen=True)
class Chart:
    """One drawing with its title and what it shows, for readers who cannot see it."""

    id: str
    title: str
    caption: str
    drawing: Markup


@dataclass(frozen=True)
class Scale:
    """Where values from `low` to `high` stand on the sheet, from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value.

        >>> Scale(0, 10, 100, 200)(5)
        150.0
        """
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Three to seven round numbers inside.

        >>> Scale(3, 27, 0, 1).ticks()
        [5, 10, 15, 20, 25]
        """
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(nice for nice in (1, 2, 5, 10) if nice * unit >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") if step < 1 else round(number * step) for number in range(first, last + 1)]


def around(values: Iterable[float], start: float, end: float) -> Scale:
    """A scale that holds all values with some room on both sides."""
    found = list(values)
    low, high = min(found), max(found)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room, start, end)


def element(tag: str, *inside: str, title: str = "", **attributes: str | float) -> Markup:
    """An element of a drawing. Text is escaped, whatever stands in it; `class_` and `font_size` become class and font-size."""
    named = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(_shown(value))}"' for name, value in attributes.items())
    within = Markup("").join([element("title", title), *inside] if title else [_text(each) for each in inside])
    return Markup(f"<{tag}{named}>{within}</{tag}>")


def _text(text: str) -> str:
    """Text that XML can hold; what is markup already stays."""
    return text if isinstance(text, Markup) else "\n".join(map(words.printable, text.split("\n")))


def _shown(value: str | float) -> str:
    return _text(value) if isinstance(value, str) else f"{round(value, 1) + 0.0:g}"  # no minus before zero


def drawing(height: float, caption: str, *parts: str) -> Markup:
    """A whole drawing; `caption` is read to those who cannot see it."""
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=caption)


def label(x: float, y: float, text: str, anchor: str = "start", kind: str = "", title: str = "") -> Markup:
    """One line of text at a place; "start", "middle" or "end" of it is there."""
    kinds = {"class_": kind} if kind else {}
    ends = {"text_anchor": anchor} if anchor != "start" else {}
    return element("text", escape(_text(text)), title=title, x=x, y=y, **ends, **kinds)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line; `kind` is its class in style.css."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def shortened(text: str, width: float) -> str:
    """The text, or its end behind an ellipsis where it is too long: layers differ in the ends of their names."""
    most = max(int(width / LETTER), 4)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def plain(value: float) -> str:
    """A round number on an axis."""
    return words.minus(f"{value:,.10g}")


def round_bytes(count: float) -> str:
    """A round number of bytes on an axis.

    >>> round_bytes(0), round_bytes(250), round_bytes(2_500), round_bytes(40_000_000)
    ('0', '250 B', '2.5 kB', '40 MB')
    """
    size, unit = next(((size, unit) for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if count >= size), (1, "B"))
    return f"{count / size:g} {unit}" if count else "0"


def axis_across(scale: Scale, y: float, top: float, told: str, show: Callable[[float], str] = plain) -> Markup:
    """The numbers along the lower edge at `y`, faint lines up to `top`, and what they count."""
    parts = [line(scale(tick), top, scale(tick), y, "grid") for tick in scale.ticks()]
    for tick in scale.ticks():
        text = show(tick)
        at_edge = scale(tick) + LETTER * len(text) / 2 > WIDTH
        parts.append(label(WIDTH if at_edge else scale(tick), y + LINE, text, "end" if at_edge else "middle"))
    return Markup("").join([*parts, label((scale.start + scale.end) / 2, y + 2 * LINE, told, "middle", "quiet")])


def axis_up(scale: Scale, left: float, right: float, told: str, show: Callable[[float], str] = plain) -> Markup:
    """The numbers along the left edge, faint lines to the right one, and above them what they count."""
    parts = [line(left, scale(tick), right, scale(tick), "grid") for tick in scale.ticks()]
    parts += [label(left - 8, scale(tick) + 4, show(tick), "end") for tick in scale.ticks()]
    return Markup("").join([*parts, label(0, 14, told, kind="quiet")])


def legend(entries: Sequence[tuple[str, str]], top: float) -> tuple[Markup, float]:
    """Words with their colours in as many lines as they need, and the height of these."""
    parts, x, y = [], 0.0, top + LINE
    for text, colour in entries:
        width = 24 + LETTER * len(text)
        if x and x + width > WIDTH:
            x, y = 0.0, y + LINE
        parts += [element("rect", x=x, y=y - 10, width=11, height=11, rx=2, fill=colour), label(x + 17, y, text)]
        x += width + 8
    return Markup("").join(parts), y + 6 - top if entries else 0.0


Bar = tuple[str, Mapping[str, int]]
"""A name and its bytes by kind."""


def fewer(rows: Sequence[Bar], most: int = 16) -> list[Bar]:
    """At most so many rows: layers are summed up by the modules they stand in, as deep as there is room; then the smallest.

    >>> fewer([("a.0", {"weights": 2}), ("a.1", {"weights": 3}), ("b", {"weights": 4})], most=2)
    [('a', {'weights': 5}), ('b', {'weights': 4})]
    """
    for depth in range(max((name.count(".") for name, _ in rows), default=0) + 1, 0, -1):
        found = _summed((".".join(name.split(".")[:depth]), parts) for name, parts in rows)
        if len(found) <= most:
            return found
    chosen = sorted(range(len(found)), key=lambda at: -sum(found[at][1].values()))[: most - 1]
    others = f"{len(found) - len(chosen)} others"
    rest = _summed((others, parts) for at, (_, parts) in enumerate(found) if at not in chosen)
    return [*(found[at] for at in sorted(chosen)), *rest]


def _summed(rows: Iterable[Bar]) -> list[Bar]:
    """Rows of the same name as one."""
    sums: dict[str, dict[str, int]] = {}
    for name, parts in rows:
        own = sums.setdefault(name, {})
        for kind, size in parts.items():
            own[kind] = own.get(kind, 0) + size
    return list(sums.items())


def bars(caption: str, rows: Sequence[Bar], colours: Mapping[str, str], longest: int, keyed: bool = True) -> Markup:
    """A bar for every row, a piece of it for every kind, its bytes and share beside it; `longest` would fill the sheet.

    Where there is more than one kind, a legend names them, unless one beside it does.
    """
    total = sum(sum(parts.values()) for _, parts in rows)
    several = [(kind, colour) for kind, colour in colours.items() if any(parts.get(kind) for _, parts in rows)]
    parts = []
    for number, (name, kinds) in enumerate(rows):
        top, all_bytes = ROW * number, sum(kinds.values())
        told = f"{format_bytes(all_bytes)}, {_share(all_bytes, total)}"
        room = WIDTH - LETTER * (len(told) + 2)
        parts += [label(0, top + 13, shortened(name, room), title=name), label(WIDTH, top + 13, told, "end", "quiet")]
        parts.append(element("rect", x=0, y=top + 19, width=WIDTH, height=9, rx=2, class_="track"))
        x = 0.0
        for kind, colour in colours.items():
            width = WIDTH * kinds.get(kind, 0) / longest if longest else 0.0
            if width:
                title = f"{name}, {kind}: {format_bytes(kinds[kind])}"
                parts.append(element("rect", title=title, x=x, y=top + 19, width=max(width, 0.5), height=9, fill=colour))
                x += width
    key, height = legend(several if keyed and len(several) > 1 else [], ROW * len(rows))
    return drawing(ROW * len(rows) + height, caption, *parts, key)


def _share(part: int, whole: int) -> str:
    return "under 0.1 %" if 0 < part < whole / 2000 else words.percent(part / whole, 1) if whole else words.MISSING
