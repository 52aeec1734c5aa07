"""A document as one HTML page that opens offline: text, style and drawings in a single file, and no script."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from enxuto import files
from enxuto.losses import Sensitivity
from enxuto.reports import charts, losses, memory, ship, summary, words
from enxuto.reports.document import Document, MemoryUse
from enxuto.sizes import format_bytes

_HERE = Path(__file__).parent


def write_html(document: Document, path: str | os.PathLike[str], sensitivity: Sensitivity | None = None) -> None:
    """Writes the page of a document to `path`, whole or not at all, with what its layers lose where that is given.

    Raises: OutputError when the folder is missing, cannot be written, or the disk is full.
    """
    files.write_bytes(path, render(document, sensitivity).encode())


def write_memory_html(name: str, uses: Sequence[MemoryUse], path: str | os.PathLike[str]) -> None:
    """Writes the memory of some runs as a page of its own, whole or not at all.

    Raises: OutputError when the folder is missing, cannot be written, or the disk is full.
    """
    text = _filled("memory_page.html.j2", name=name, memory=memory.sections(uses), lead="", version="")
    files.write_bytes(path, text.encode())


def render(document: Document, sensitivity: Sensitivity | None = None) -> str:
    """The page of a document as text. The same document gives the same page, byte for byte."""
    return _filled(
        "template.html.j2",
        document=document,
        charts={"bytes": charts.layers(document), "latency": charts.latency(document), "history": charts.history(document)},
        least=charts.goals(document)[1] if document.history else None,
        memory=memory.sections(document.memory),
        lead="It is foreseen from shapes alone, and trained is with float weights and AdamW. ",
        recipe=recipe_yaml(document),
        sensitivity=sensitivity,
        losses=[] if sensitivity is None else losses.charts(sensitivity),
        version=f" {document.enxuto}",
    )


def _filled(template: str, **parts: object) -> str:
    """A template with its parts and the style that every page has."""
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(**parts, style=style)


def recipe_yaml(document: Document) -> str:
    """The recipe as YAML; empty when there is none."""
    steps = [dict(step) for step in document.recipe]
    return yaml.safe_dump(steps, sort_keys=False, allow_unicode=True) if steps else ""


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
