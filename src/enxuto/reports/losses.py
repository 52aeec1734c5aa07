"""The charts of a sensitivity: what each layer loses by fewer bits, and how errors grow along the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from enxuto.losses import Depth, LayerLosses, Sensitivity
from enxuto.reports import svg, words
from enxuto.reports.svg import LINE, PALETTE, WIDTH, Chart

NAMES = 150  # of the sheet: room for the names of layers
ROW = 20
LEFT, TOP, HEIGHT = 56, 28, 230
LEAST = 1e-12  # what is drawn at least: errors stand by their logarithm


def charts(sensitivity: Sensitivity) -> list[Chart]:
    """A chart for each part of it that was measured."""
    return [*_by_layer(sensitivity), *_along(sensitivity.depth)]


def _by_layer(sensitivity: Sensitivity) -> list[Chart]:
    """A row for each layer, a dot for each number of bits."""
    rows = [(layer, _errors(layer)) for layer in sensitivity.layers]
    rows = [(layer, errors) for layer, errors in rows if errors]
    if not rows:
        return []
    bits = list(dict.fromkeys(each for _, errors in rows for each, _ in errors))
    across = svg.around([_log(error) for _, errors in rows for _, error in errors], NAMES, WIDTH - 8)
    foot = ROW * len(rows) + 4
    parts = [svg.axis_across(across, foot, 0, "squared error of the outputs, of their variance", _power)]
    for place, (layer, errors) in enumerate(rows):
        y, name = ROW * place + ROW / 2, words.printable(layer.path or "(model)")
        parts.append(svg.label(0, y + 4, svg.shortened(name, NAMES - 12), title=name))
        for each, error in errors:
            told = f"{name}, {each} bits: {error:.2g}"
            parts.append(svg.element("circle", title=told, cx=across(_log(error)), cy=y, r=4, fill=_colour(bits, each)))
    key, height = svg.legend([(f"{each} bits", _colour(bits, each)) for each in bits], foot + 2 * LINE + 4)
    worst, errors = max(rows, key=lambda row: row[1][-1][1])
    caption = f"What the outputs lose when one layer alone has fewer bits; at {errors[-1][0]} bits most with {worst.path}."
    return [Chart("losses", "Each layer alone", caption, svg.drawing(foot + 2 * LINE + 4 + height, caption, *parts, key))]


def _errors(layer: LayerLosses) -> list[tuple[int, float]]:
    plain = [loss for loss in layer.losses if loss.sparsity is loss.size is None and not layer.why]
    return [(loss.bits, loss.error) for loss in plain if loss.bits is not None and loss.error is not None]


def _along(depth: Sequence[Depth]) -> list[Chart]:
    """A line for each number of bits over the layers in their order."""
    bits = list(dict.fromkeys(each.bits for each in depth))
    lines = {few: [each for each in depth if each.bits == few] for few in bits}
    longest = max((len(line) for line in lines.values()), default=0)
    if longest < 2:
        return []
    across = svg.Scale(1, longest, LEFT + 8, WIDTH - 8)
    up = svg.around([_log(each.error) for each in depth], HEIGHT, TOP)
    parts = [
        svg.axis_across(across, HEIGHT, TOP, "layers, in the order in which they run", lambda place: svg.plain(round(place))),
        svg.axis_up(up, LEFT, WIDTH, "relative error of the output, all weights changed", _power),
    ]
    for few, line in lines.items():
        places = [(across(at), up(_log(each.error)), each) for at, each in enumerate(line, 1)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(svg.element("polyline", points=points, stroke=_colour(bits, few), class_="curve"))
        parts += [_dot(x, y, each, _colour(bits, few)) for x, y, each in places]
    key, height = svg.legend([(f"{few} bits", _colour(bits, few)) for few in bits], HEIGHT + 2 * LINE + 4)
    last = lines[bits[0]][-1]
    caption = f"How errors grow along the depth; at {bits[0]} bits the last layer is {last.error:.2g} off."
    return [Chart("depth", "All layers together", caption, svg.drawing(HEIGHT + 2 * LINE + 4 + height, caption, *parts, key))]


def _dot(x: float, y: float, each: Depth, colour: str) -> Markup:
    told = f"{words.printable(each.path)}, {each.bits} bits: {each.error:.2g}, of it its own {each.own:.2g}"
    return svg.element("circle", title=told, cx=x, cy=y, r=3, fill=colour)


def _log(error: float) -> float:
    return math.log10(max(error, LEAST))


def _power(exponent: float) -> str:
    return f"{10**exponent:.1g}"


def _colour(bits: Sequence[int], each: int) -> str:
    return PALETTE[bits.index(each) % len(PALETTE)]
