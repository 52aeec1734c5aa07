"""Writes docs/api.md: every public name with its signature and its docstring. A test holds the page to the code."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import enxuto

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# The names

Made from the docstrings by `python tools/api.py`; a test keeps it current. `import enxuto as ex` has the names of the first part,
`ex.terms`, `ex.memory` and `enxuto.runtime` those of the others. All arguments of steps stand in the recipe, by name.
`ex.lightning.Compress` and `ex.transformers.Compress` need packages besides: [any loop](any-loop.md).
"""
KINDS = {
    "steps": "Steps",
    "task": "What you bring",
    "records": "What you bring",
    "training": "Your own loop",
    "memory": "ex.memory",
    "training.terms.table": "ex.terms",
    "runtime": "enxuto.runtime",
}
ORDER = ("What you bring", "Verbs", "Steps", "Your own loop", "ex.terms", "ex.memory", "enxuto.runtime")


def page() -> str:
    """The whole page."""
    parts: dict[str, list[str]] = {title: [] for title in ORDER}
    for name, home in enxuto._HOMES.items():
        parts[KINDS.get(home.split(".")[0], "Verbs")].append(_entry(f"ex.{name}", getattr(enxuto, name)))
    for room, prefix in (("training.terms.table", "ex.terms"), ("memory", "ex.memory"), ("runtime", "enxuto.runtime")):
        module = importlib.import_module(f"enxuto.{room}")
        parts[KINDS[room]] += [_entry(f"{prefix}.{name}", getattr(module, name)) for name in module.__all__]
    return HEAD + "".join(f"\n## {title}\n\n" + "\n".join(entries) for title, entries in parts.items())


def _entry(name: str, value: Any) -> str:
    """A heading, the signature as code, and the docstring."""
    words = inspect.cleandoc(value.__doc__ or "")
    said = [f"### {name}", "", "```python", _signature(name, value), "```", "", *_text(words)]
    if inspect.isclass(value) and not dataclasses.is_dataclass(value):
        for verb, function in inspect.getmembers(value, inspect.isfunction):
            if not verb.startswith("_") and function.__doc__ and function.__qualname__.startswith(value.__name__):
                said += [f"`.{verb}{_arguments(function)}` {inspect.cleandoc(function.__doc__).splitlines()[0]}", ""]
    return "\n".join(said) + "\n"


def _signature(name: str, value: Any) -> str:
    """The call; one argument a line where it is long."""
    arguments = "" if inspect.isclass(value) and issubclass(value, BaseException) else _arguments(value)
    call = f"{name}{arguments}"
    if len(call) <= 100:
        return call
    marks = [f"    {parameter}," for parameter in inspect.signature(value).parameters.values()]
    given = inspect.signature(value).return_annotation
    arrow = "" if given is inspect.Signature.empty or inspect.isclass(value) else f" -> {_plain(given)}"
    star = next((i for i, it in enumerate(inspect.signature(value).parameters.values()) if it.kind is it.KEYWORD_ONLY), None)
    if star is not None:
        marks.insert(star, "    *,")
    return _tidy("\n".join([f"{name}(", *marks, f"){arrow}"]))


def _arguments(value: Any) -> str:
    return _tidy(str(inspect.signature(value))).replace(" -> None", "")


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _tidy(text: str) -> str:
    """Annotations without quotes, and "..." for defaults that have no words of their own."""
    return re.sub(r"<[^>]*>", "...", re.sub(r"(: |-> )'([^']*)'", r"\1\2", text))


def _text(words: str) -> list[str]:
    """A docstring as Markdown: a doctest becomes code."""
    lines: list[str] = []
    code = False
    for line in words.splitlines():
        starts = line.startswith((">>>", "...")) or (code and line.strip() != "")
        if starts != code:
            lines += ["```python"] if starts else ["```"]
            code = starts
        lines.append(line)
    return [*lines, *(["```"] if code else []), ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
