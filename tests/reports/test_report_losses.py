"""The section of a report about what layers lose: there where it is known, escaped, and with a dot for every figure."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from enxuto.errors import ArtifactError
from enxuto.losses import Depth, Fault, LayerLosses, Loss, Sensitivity
from enxuto.reports import Document
from enxuto.reports.losses import charts
from enxuto.reports.page import render
from enxuto.verbs import report

EXAMPLE = Path(__file__).with_name("example.json")
EVIL = "</script><b onmouseover=alert(1)>&amp;"


def layer(path: str, *errors: float | None, why: str = "") -> LayerLosses:
    losses = [
        Loss(bits=bits, error=error, bytes=None if error is None else 10 * bits, why="" if error is not None else "it is so")
        for bits, error in zip((8, 4), errors, strict=True)
    ]
    thin = Loss(size=0.5, bytes=7, error=0.25, agreement=0.5)
    return LayerLosses(path=path, kind="Linear", weights=1000, bytes=4000, losses=(*losses, thin), why=why)


FOUND = Sensitivity(
    name="Net",
    key="abc",
    samples=64,
    apart=True,
    rest_bytes=100,
    layers=(layer("fc1", 1e-5, 0.02), layer(EVIL, 0.0, 0.3), layer("fc3", None, 0.1), layer("spare", 0.0, 0.0, why="unreached")),
    depth=tuple(Depth(path=path, bits=bits, error=0.1, own=0.05) for bits in (8, 4) for path in ("fc1", EVIL, "fc3")),
    faults=(Fault(kind="overflow", path=EVIL, value=3e4, limit=16376.0),),
)


@pytest.fixture
def document() -> Document:
    return Document.from_json(json.loads(EXAMPLE.read_text()))


def test_the_page_shows_it_only_where_it_is_known(document):
    assert "What each layer loses" not in render(document)
    page = render(document, FOUND)
    for words in ("What each layer loses", "Each layer alone", "All layers together", "Fewer bits", "Thin layers", "64 samples"):
        assert words in page
    assert "values up to 3e+04 come near to 65,504" in page
    assert "fc3&#39; (8 bits): it is so." in page
    assert "<b onmouseover" not in page


def test_every_figure_is_a_dot_that_says_what_it_is():
    alone, together = charts(FOUND)
    for chart, dots in ((alone, 5), (together, 6)):
        tree = ET.fromstring(chart.drawing)
        circles = list(tree.iter("circle"))
        assert len(circles) == dots
        assert all(len(list(circle.iter("title"))) == 1 for circle in circles)
        assert all(0 <= float(circle.attrib["cx"]) <= 480 for circle in circles)
    assert "at 4 bits most with" in alone.caption
    assert charts(dataclasses.replace(FOUND, layers=(), depth=())) == []


def test_the_newest_in_the_folder_of_a_result_is_shown(document, tmp_path):
    (tmp_path / "result.json").write_text(EXAMPLE.read_text())
    report(tmp_path, tmp_path / "r.html")
    assert "What each layer loses" not in (tmp_path / "r.html").read_text()
    FOUND.save(tmp_path / "sensitivity-abc.json")
    (tmp_path / "sensitivity-new.part.json").write_text("{}")
    for what in (tmp_path, tmp_path / "result.json"):
        report(what, tmp_path / "r.html")
        assert "What each layer loses" in (tmp_path / "r.html").read_text()


def test_one_can_be_given_as_it_is_or_by_its_file(document, tmp_path):
    (tmp_path / "result.json").write_text(EXAMPLE.read_text())
    (tmp_path / "kept").mkdir()
    FOUND.save(tmp_path / "kept" / "it.json")
    pages = []
    for given in (FOUND, tmp_path / "kept" / "it.json"):
        report(tmp_path, tmp_path / "r.html", sensitivity=given)
        pages.append((tmp_path / "r.html").read_text())
    assert pages[0] == pages[1]
    assert "What each layer loses" in pages[0]
    with pytest.raises(ArtifactError, match="cannot be read"):
        report(tmp_path, tmp_path / "r.html", sensitivity=tmp_path / "other.json")
