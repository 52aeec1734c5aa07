"""The memory section of the page: every byte of the peak in its charts, one scale for both, a reason where nothing is known."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from enxuto.errors import ArtifactError
from enxuto.reports import Document
from enxuto.reports.document import MemoryUse
from enxuto.reports.memory import COLOURS, sections
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


def test_the_areas_hold_every_byte_and_have_one_scale() -> None:
    (section,) = sections(uses(before=run(4), after=run(1)))
    before, after = section.over_time
    for chart, scale in ((before, 4), (after, 1)):
        areas = [trace for trace in chart.figure.data if trace.stackgroup]
        assert [trace.name for trace in areas] == ["weights", "activations"], "what is nowhere is not drawn"
        assert sum(trace.y[1] for trace in areas) == 70 * scale
        assert all(trace.x[-1] == 40 for trace in areas)
        assert chart.figure.layout.yaxis.range == before.figure.layout.yaxis.range


def test_the_layer_under_the_cursor_is_told_with_its_phase_operator_and_bytes() -> None:
    (section,) = sections(uses(before=run(), after=run()))
    notes = section.over_time[0].figure.data[-1].hovertext
    assert notes[1] == "<b>blocks.0.fc1</b><br>forward: aten.addmm.default<br>weights 10 B<br>activations 60 B<br>all 70 B"
    assert notes[0].startswith("<b>(model)</b>")


def test_the_maps_hold_the_peak_and_their_areas_compare() -> None:
    (section,) = sections(uses(before=run(4), after=run(1)))
    before, after = (chart.figure.data[0] for chart in section.by_layer)
    assert (before["values"][0], after["values"][0]) == (280, 70)
    for data in (before, after):
        sums = dict.fromkeys(data.ids, 0)
        for parent, value in zip(data.parents, data["values"], strict=True):
            if parent:
                sums[parent] += value
        sizes = dict(zip(data.ids, data["values"], strict=True))
        assert all(total in (0, sizes[tile]) for tile, total in sums.items())
    sides = [data.domain.x[1] - data.domain.x[0] for data in (before, after)]
    assert sides[1] ** 2 / sides[0] ** 2 == pytest.approx(1 / 4)
    assert "fc2, weights" in before.labels


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
        assert "<b onmouse" not in json.dumps(chart.figure.to_plotly_json(), default=str)
    page = render(document(what=EVIL, words=EVIL, before=run(path=EVIL), after=run(path=EVIL)))
    assert not re.search("<b onmouseover", page)


def test_a_category_of_a_later_version_is_shown_too() -> None:
    later = run()
    later["bytes"]["caches"] = [1, 1, 1]
    (section,) = sections(uses(before=later, after=run()))
    assert "caches" in [trace.name for trace in section.over_time[0].figure.data]
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
