"""The memory section of the page: every byte of the peak in its charts, one scale for both, a reason where nothing is known."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from enxuto.errors import ArtifactError
from enxuto.reports import Document, svg
from enxuto.reports.document import MemoryUse
from enxuto.reports.memory import COLOURS, holders, sections, stacks
from enxuto.reports.page import render, write_memory_html

EVIL = "</script><b onmouseover=alert(1)>"


def run(scale: int = 1, path: str = "blocks.0.fc1") -> dict[str, Any]:
    return {
        "moments": 40,
        "peak": 1,
        "peak_bytes": 70 * scale,
        "at": [0, 10, 30],
        "phases": ["forward", "forward", "backward"],
        "paths": ["", path, path],
        "operators": ["aten.relu.default", "aten.addmm.default", "aten.mm.default"],
        "bytes": {"weights": [10 * scale] * 3, "activations": [0, 60 * scale, 5 * scale], "inputs": [0, 0, 0]},
        "layers": [[path, "activations", 60 * scale], [path, "weights", 6 * scale], ["fc2", "weights", 4 * scale]],
    }


def uses(**use: Any) -> Sequence[MemoryUse]:
    return document(**use).memory


def document(**use: Any) -> Document:
    use = {"what": "inference", "batch": 8} | use
    return Document.from_json({"original": {"file_bytes": 1000}, "compressed": {"file_bytes": 100}, "memory": [use]})


def drawn(markup: str) -> ET.Element:
    """A drawing as XML, which must be valid."""
    return ET.fromstring(markup)


def test_the_areas_hold_every_byte_and_have_one_scale() -> None:
    (use,) = uses(before=run(4), after=run(1))
    (section,) = sections([use])
    heights = []
    for chart, known, scale in zip(section.over_time, (use.before, use.after), (4, 1), strict=True):
        assert known is not None
        assert stacks(known) == {"weights": [10 * scale] * 3, "activations": [10 * scale, 70 * scale, 15 * scale]}
        areas = [str(path.get("d")) for path in drawn(chart.drawing).iter("path")]
        assert len(areas) == 2, "what is nowhere is not drawn"
        steps = [float(step) for step in re.findall(r"V([0-9.]+)", areas[0])]  # of all bytes: the largest is drawn first
        ground, levels = steps[-1], steps[:-1]
        assert len(levels) == 3
        heights.append(ground - min(levels))
        assert (ground - levels[0]) / heights[-1] == pytest.approx(10 / 70, abs=0.01)
        assert all(f"H{svg.WIDTH:.1f}" in area for area in areas), "the last moment lasts until the end"
    assert heights[0] / heights[1] == pytest.approx(4, abs=0.02)


def test_the_layer_under_the_cursor_is_told_with_its_phase_operator_and_bytes() -> None:
    (section,) = sections(uses(before=run(), after=run()))
    notes = [title.text for title in drawn(section.over_time[0].drawing).iter("title")]
    assert notes[1] == "blocks.0.fc1\nforward: aten.addmm.default\nweights 10 B\nactivations 60 B\nall 70 B"
    assert str(notes[0]).startswith("(model)\n")
    assert len(notes) == 3


def test_moments_too_short_for_a_cursor_are_told_by_the_fullest_of_them() -> None:
    many = run() | {"moments": 1000, "at": list(range(1000)), "peak": 501, "peak_bytes": 999, "layers": []}
    many |= {"phases": ["forward"] * 1000, "operators": ["aten.mm.default"] * 1000, "paths": [f"fc{at}" for at in range(1000)]}
    many["bytes"] = {"weights": [999 if at == 501 else 1 for at in range(1000)]}
    (section,) = sections(uses(before=many))
    boxes = [box for box in drawn(section.over_time[0].drawing).iter("rect") if box.get("class") == "under"]
    assert 20 < len(boxes) < 100
    assert all(float(box.get("width", "nan")) >= 6 for box in boxes[:-1])
    assert [box.findtext("title") for box in boxes if "999" in str(box.findtext("title"))] == [
        "fc501\nforward: aten.mm.default\nweights 999 B\nall 999 B"
    ]


def test_the_bars_hold_the_peak_and_their_lengths_compare() -> None:
    (use,) = uses(before=run(4), after=run(1))
    (section,) = sections([use])
    longest = []
    for chart, known, scale in zip(section.by_layer, (use.before, use.after), (4, 1), strict=True):
        assert known is not None
        rows = dict(holders(known, known))
        assert rows == {"blocks.0.fc1": {"activations": 60 * scale, "weights": 6 * scale}, "fc2": {"weights": 4 * scale}}
        pieces = [box for box in drawn(chart.drawing).iter("rect") if box.find("title") is not None]
        assert len(pieces) == 3
        longest.append(max(float(box.get("width", "nan")) for box in pieces))
        assert f"fc2, weights: {4 * scale} B" in [box.findtext("title") for box in pieces]
    assert longest[0] / longest[1] == pytest.approx(4, abs=0.01)


def test_what_a_step_put_into_a_layer_is_counted_with_the_layer() -> None:
    after = run() | {"layers": [["fc2.coded.weight", "weights", 3], ["fc2.coded.bias", "weights", 1], ["fc2", "activations", 5]]}
    (use,) = uses(before=run(4), after=after)
    assert use.before is not None
    assert use.after is not None
    assert dict(holders(use.after, use.before)) == {"fc2": {"weights": 4, "activations": 5}}


def test_the_table_tells_what_became_of_each_category() -> None:
    (section,) = sections(uses(before=run(4), after=run(1)))
    assert [row.measure for row in section.rows] == ["all at the fullest moment", "weights", "activations"]
    assert [row.change.text for row in section.rows] == ["4.00× less"] * 3
    page = render(document(before=run(4), after=run(1)))
    assert page.count('class="chart"') == 4
    assert "Inference, 8 samples" in page


def test_a_run_that_is_not_known_says_why() -> None:
    page = render(document(words="ValueError: of the model"))
    assert "It could not be foreseen: ValueError: of the model" in page
    assert 'class="chart"' not in page


def test_a_run_that_is_known_says_what_to_know_of_it() -> None:
    assert "measured in a real run" in render(document(before=run(), after=run(), words="measured in a real run"))
    assert "could not be foreseen" not in render(document(before=run(), after=run(), words="measured in a real run"))


def test_one_network_alone_is_shown_alone() -> None:
    (section,) = sections(uses(before=run()))
    assert (len(section.over_time), len(section.by_layer)) == (1, 1)
    assert section.columns == ("original",)
    assert "compressed" not in render(document(before=run())).partition('id="memory"')[2]


def test_names_are_never_markup() -> None:
    (section,) = sections(uses(before=run(path=EVIL), after=run(path=EVIL)))
    for chart in (*section.over_time, *section.by_layer):
        assert "<b onmouse" not in chart.drawing
        assert EVIL in "".join(drawn(chart.drawing).itertext())
    page = render(document(what=EVIL, words=EVIL, before=run(path=EVIL), after=run(path=EVIL)))
    assert not re.search("<b onmouseover", page)


def test_a_category_of_a_later_version_is_shown_too() -> None:
    later = run()
    later["bytes"]["caches"] = [1, 1, 1]
    (section,) = sections(uses(before=later, after=run()))
    assert "caches" in [text.text for text in drawn(section.over_time[0].drawing).iter("text")]
    assert "caches" in [row.measure for row in section.rows]
    assert "caches" not in COLOURS


@pytest.mark.parametrize("change", [{"peak": 3}, {"at": [0, 1]}, {"bytes": {"weights": [1]}}, {"at": "soon"}])
def test_lists_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="memory"):
        document(before=run() | change)


def test_the_example_has_a_page_with_memory(tmp_path: Path) -> None:
    data = json.loads(Path(__file__).with_name("example.json").read_text())
    assert data["memory"], "the browser test draws these"
    assert 'id="memory-1-time-0"' in render(Document.from_json(data))


def test_runs_have_a_page_of_their_own(tmp_path: Path) -> None:
    given = uses(before=run(2), after=run(1), names=["predicted", "recorded"])
    for name in ("a.html", "b.html"):
        write_memory_html(EVIL, given, tmp_path / name)
    page = (tmp_path / "a.html").read_text()
    assert (tmp_path / "b.html").read_text() == page
    assert page.count('class="chart"') == 4
    assert "<b onmouseover" not in page
    assert "Recorded: 70 B" in page


def test_what_did_not_change_is_shown_once() -> None:
    (section,) = sections(uses(before=run(), after=run()))
    assert (section.networks, len(section.over_time), len(section.by_layer)) == (1, 1, 1)
    assert section.words == "original and compressed hold the same at the fullest moment, so one of them is shown"
    (section,) = sections(uses(before=run(2), after=run(1)))
    assert (section.networks, len(section.over_time)) == (2, 2)
