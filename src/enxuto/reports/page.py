"""A document as one HTML page that opens offline: text, style, charts and the code that draws them, in a single file.

plotly's code travels gzipped inside the page (4.8 MB become 1.9 MB) and is unpacked by the browser.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from enxuto import files
from enxuto.reports import ship, summary, words
from enxuto.reports.document import Document, MemoryUse
from enxuto.sizes import format_bytes

if TYPE_CHECKING:
    from enxuto.reports.charts import Chart
    from enxuto.reports.memory import Section

_HERE = Path(__file__).parent


def write_html(document: Document, path: str | os.PathLike[str]) -> None:
    """Writes the page of a document to `path`, whole or not at all.

    Raises: OutputError when the folder is missing, cannot be written, or the disk is full.
    """
    files.write_bytes(path, render(document).encode())


def write_memory_html(name: str, uses: Sequence[MemoryUse], path: str | os.PathLike[str]) -> None:
    """Writes the memory of some runs as a page of its own, whole or not at all.

    Raises: OutputError when the folder is missing, cannot be written, or the disk is full.
    """
    from enxuto.reports import memory

    sections = memory.sections(uses)
    drawn = _memory_charts(sections)
    text = _filled("memory_page.html.j2", drawn, repr((name, uses)), name=name, memory=sections, lead="", version="")
    files.write_bytes(path, text.encode())


def render(document: Document) -> str:
    """The page of a document as text. The same document gives the same page, byte for byte."""
    from enxuto.reports import charts, memory  # plotly takes a moment to import, and the terminal tables do without

    figures = {
        "bytes": charts.treemaps(document),
        "latency": charts.latency(document),
        "history": charts.history(document),
    }
    sections = memory.sections(document.memory)
    return _filled(
        "template.html.j2",
        [chart for group in figures.values() for chart in group] + _memory_charts(sections),
        repr(document),
        document=document,
        charts=figures,
        memory=sections,
        lead="It is foreseen from shapes alone, and trained is with float weights and AdamW. ",
        recipe=recipe_yaml(document),
        version=f" {document.enxuto}",
    )


def _memory_charts(sections: Sequence[Section]) -> list[Chart]:
    return [chart for section in sections for chart in (*section.over_time, *section.by_layer)]


def _filled(template: str, drawn: Sequence[Chart], identity: str, **parts: object) -> str:
    """A template with its parts, and what every page has; `identity` is all that the page depends on."""
    specs = {chart.id: json.loads(chart.figure.to_json()) for chart in drawn}
    return (
        _environment()
        .get_template(template)
        .render(
            **parts,
            specs=specs,
            plotly=_packed_plotly() if specs else "",
            nonce=hashlib.sha256(identity.encode()).hexdigest()[:32],  # only the page's own scripts run
            style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
            script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        )
    )


def recipe_yaml(document: Document) -> str:
    """The recipe as YAML; empty when there is none."""
    steps = [dict(step) for step in document.recipe]
    return yaml.safe_dump(steps, sort_keys=False, allow_unicode=True) if steps else ""


@functools.cache
def _packed_plotly() -> str:
    """plotly's code, gzipped, as base64."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _glued(text: str) -> str:
    """The text with numbers that stay on the line of their unit."""
    return re.sub(r"(?<=\d) (?=\S)", "\u00a0", text)


def _capital(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(ship=ship, summary=summary, words=words)
    environment.filters.update(
        size=lambda count: words.MISSING if count is None else format_bytes(count), glued=_glued, capital=_capital
    )
    return environment
