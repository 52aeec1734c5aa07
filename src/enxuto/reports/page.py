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
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from enxuto import files
from enxuto.reports import summary, words
from enxuto.reports.document import Document
from enxuto.sizes import format_bytes

_HERE = Path(__file__).parent


def write_html(document: Document, path: str | os.PathLike[str]) -> None:
    """Writes the page of a document to `path`, whole or not at all.

    Raises: OutputError when the folder is missing, cannot be written, or the disk is full.
    """
    files.write_bytes(path, render(document).encode())


def render(document: Document) -> str:
    """The page of a document as text. The same document gives the same page, byte for byte."""
    from enxuto.reports import charts, memory  # plotly takes a moment to import, and the terminal tables do without

    figures = {
        "bytes": charts.treemaps(document),
        "latency": charts.latency(document),
        "history": charts.history(document),
    }
    sections = memory.sections(document)
    pairs = [pair for section in sections for pair in (section.over_time, section.by_layer)]
    specs = {chart.id: json.loads(chart.figure.to_json()) for group in (*figures.values(), *pairs) for chart in group}
    return (
        _environment()
        .get_template("template.html.j2")
        .render(
            document=document,
            charts=figures,
            memory=sections,
            specs=specs,
            plotly=_packed_plotly() if specs else "",
            nonce=hashlib.sha256(repr(document).encode()).hexdigest()[:32],  # only the page's own scripts run
            style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
            script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
            recipe=recipe_yaml(document),
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


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(summary=summary, words=words)
    environment.filters.update(size=lambda count: words.MISSING if count is None else format_bytes(count), glued=_glued)
    return environment
