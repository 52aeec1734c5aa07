"""The page: one file, nothing fetched, everything escaped, whole with whatever parts there are."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from enxuto.errors import OutputError
from enxuto.reports import Document, charts, read_document, ship, summary, svg, write_html
from enxuto.reports.page import recipe_yaml, render

EXAMPLE = Path(__file__).with_name("example.json")
EVIL = "</script><script>alert('x')</script><b onmouseover=alert(1)>&amp;"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def example(**changes: Any) -> Document:
    return Document.from_json({**json.loads(EXAMPLE.read_text()), **changes})


def least(**changes: Any) -> Document:
    return Document.from_json({"original": {"file_bytes": 1000}, "compressed": {"file_bytes": 100}, **changes})


class Page(HTMLParser):
    """Tags with their attributes, headings in order, and which tables have captions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags nest"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_nothing_is_loaded_from_anywhere() -> None:
    page = Page(render(example()))
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert not attributes.get(name) or str(attributes[name]).startswith("data:"), attributes
    style = "".join(page.words["style"])
    assert "url(" not in style
    assert "@import" not in style
    policy = [tag["content"] for tag in page.named("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy[0]).startswith("default-src 'none'")
    assert "http" not in str(policy[0])


def test_the_page_names_no_address_has_no_script_and_is_small() -> None:
    page = render(example())
    assert not re.search(r"https?://", page)
    assert Page(page).named("script") == []
    assert not [name for _, attributes in Page(page).tags for name in attributes if name.startswith("on")]
    assert len(page.encode()) < 200_000


def drawn(markup: str) -> ET.Element:
    """A drawing as XML, which must be valid."""
    return ET.fromstring(markup)


def told(drawing: ET.Element) -> list[str]:
    """What a drawing says under the cursor."""
    return [title.text or "" for title in drawing.iter("title")]


def test_every_drawing_is_valid_and_is_told_to_those_who_cannot_see_it() -> None:
    for document in (example(), evil_document()):
        drawings = [drawn(each) for each in re.findall(r"<svg.*?</svg>", render(document), flags=re.S)]
        assert len(drawings) >= 4
        for drawing in drawings:
            assert drawing.get("role") == "img"
            assert drawing.get("aria-label")
            height = float(str(drawing.get("viewBox")).split()[3])
            for box in drawing.iter("rect"):
                place, size = (float(box.get(name, "nan")) for name in ("x", "width"))
                assert -0.1 <= place <= place + size <= svg.WIDTH + 0.6, "nothing leaves the sheet"
                assert 0 <= float(box.get("y", "nan")) + float(box.get("height", "nan")) <= height


def evil_document() -> Document:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return EVIL if isinstance(value, str) else value

    data = json.loads(EXAMPLE.read_text())
    data["environment"] = {EVIL: EVIL}
    data["records"][0]["figures"] = {EVIL: 1.0}
    return Document.from_json(poison(data))


def test_text_from_outside_is_never_markup() -> None:
    harmless, evil = Page(render(example())), Page(render(evil_document()))
    assert "alert" not in {name for _, attributes in evil.tags for name in attributes}
    assert not [tag for tag in evil.tags if tag[0] == "b" or "onmouseover" in tag[1]]
    assert len(evil.named("script")) == len(harmless.named("script"))


def test_labels_of_charts_show_tags_as_text() -> None:
    document = least(ledger=[{"path": EVIL, "bytes": 90}, {"path": "b\x00\x1b", "bytes": 10}])
    chart = charts.layers(document)[0]
    assert "<script" not in chart.drawing
    assert f"{EVIL}, weights: 90 B" in told(drawn(chart.drawing))
    assert "b\ufffd\ufffd, weights: 10 B" in told(drawn(chart.drawing)), "what XML cannot hold"


OPTIONAL = [field.name for field in dataclasses.fields(Document) if field.name not in ("original", "compressed")]


@pytest.mark.parametrize("missing", OPTIONAL)
def test_the_page_stands_without_any_one_part(missing: str) -> None:
    data = json.loads(EXAMPLE.read_text())
    data.pop(missing, None)
    assert Page(render(Document.from_json(data))).open == []


def test_the_least_document_makes_a_small_whole_page_without_charts() -> None:
    page = render(least())
    assert Page(page).open == []
    assert len(page) < 12_000
    assert "1.00 kB became 100\u00a0B, 10.0\u00a0times smaller." in page.replace("1.00\u00a0kB", "1.00 kB")
    assert "the recipe was given by hand" in page
    assert 'id="goal"' not in page
    assert "The only one; " in page


def test_a_missed_goal_says_why_and_what_would_help() -> None:
    page = render(example(met=False, verdict=["size 30 kB > 20 kB: missed"], advice=["allow a drop of 0.9 points"]))
    assert "✗ Goal missed" in page
    assert "size 30 kB &gt; 20 kB: missed" in page
    assert "allow a drop of 0.9 points" in page


def test_without_a_target_nothing_is_said_to_be_met() -> None:
    assert "Goal met" in render(example(met=True))
    assert "Goal met" not in render(example(met=True, target=None))
    assert "Another network" in render(example(met=False, target=None, verdict=["no longer the same network: missed"]))


def test_headings_descend_one_at_a_time_and_tables_have_captions() -> None:
    page = Page(render(example(met=False, advice=["more bits"])))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.named("table")) == len(page.named("caption")) >= 6
    assert all(tag.get("scope") in ("row", "col") for tag in page.named("th"))
    assert all(tag.get("aria-label") for tag in page.named("div") if tag.get("class") == "chart")
    assert len(page.named("svg")) == len(page.named("figure"))
    assert page.named("html")[0]["lang"] == "en"


def test_every_reference_inside_the_page_exists_and_every_id_once() -> None:
    page = Page(render(example()))
    ids = [tag[1]["id"] for tag in page.tags if "id" in tag[1]]
    assert len(ids) == len(set(ids))
    wanted = {tag[1].get("aria-labelledby") for tag in page.tags} - {None}
    assert wanted <= set(ids)


def test_the_same_document_gives_the_same_page(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_html(read_document(EXAMPLE), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        write_html(least(), tmp_path / "nowhere" / "report.html")


def test_the_recipe_comes_back_from_its_yaml() -> None:
    document = example()
    assert yaml.safe_load(recipe_yaml(document)) == [dict(step) for step in document.recipe]


def lengths(drawing: ET.Element) -> dict[str, float]:
    """The length of every piece of every bar, by what it says."""
    pieces = [box for box in drawing.iter("rect") if box.find("title") is not None]
    return {str(box.findtext("title")): float(box.get("width", "nan")) for box in pieces}


def test_the_bars_hold_every_byte_of_both_files_to_scale() -> None:
    document = example()
    before, after = charts.bytes_before(document), charts.bytes_after(document)
    assert sum(size for _, parts in before for size in parts.values()) == document.original.file_bytes
    assert sum(size for _, parts in after for size in parts.values()) == document.compressed.file_bytes
    for chart, rows in zip(charts.layers(document), (before, after), strict=True):
        found, most = lengths(drawn(chart.drawing)), max(sum(parts.values()) for _, parts in rows)
        wanted = {(name, kind, size) for name, parts in rows for kind, size in parts.items() if size}
        assert len(found) == len(wanted)
        for name, kind, size in wanted:
            length = found[f"{name}, {kind}: {summary.format_bytes(size)}"]
            assert length == pytest.approx(max(svg.WIDTH * size / most, 0.5), abs=0.06)


def test_many_layers_are_summed_up_by_module_and_no_byte_is_lost() -> None:
    blocks = [(f"blocks.{block}.{name}", {"weights": block, "scales": 1}) for block in range(9) for name in ("fc1", "fc2")]
    shown = svg.fewer([("embedding", {"weights": 7}), *blocks, ("(header)", {"header": 5})])
    assert [name for name, _ in shown] == ["embedding", *(f"blocks.{block}" for block in range(9)), "(header)"]
    assert dict(shown)["blocks.8"] == {"weights": 16, "scales": 2}
    flat = [(f"layer{number}", {"weights": number, "scales": 1}) for number in range(30)]
    shown = svg.fewer(flat)
    assert [name for name, _ in shown] == [*(f"layer{number}" for number in range(15, 30)), "15 others"]
    assert dict(shown)["15 others"] == {"weights": sum(range(15)), "scales": 15}
    assert svg.fewer(flat[:16]) == flat[:16]
    assert svg.fewer([]) == []


def test_long_names_keep_their_ends_and_whole_names_are_told() -> None:
    name = "encoder." * 20 + "fc1"
    drawing = drawn(charts.layers(least(ledger=[{"path": name, "bytes": 9}]))[0].drawing)
    (shown,) = [str(text.findtext("title")) for text in drawing.iter("text") if text.find("title") is not None]
    assert shown == name
    assert any(
        (text.find("title") is not None and (text.find("title").tail or "").startswith("…")) for text in drawing.iter("text")
    )  # type: ignore[union-attr]


def test_axes_have_round_numbers_inside_of_them() -> None:
    for low, high in ((0, 1), (3, 27), (95.8, 97.6), (0, 0.004), (-5e9, 12e9), (0.9741, 0.9759)):
        ticks = svg.Scale(low, high, 0, 100).ticks()
        assert 3 <= len(ticks) <= 8
        assert all(low - 1e-9 <= tick <= high for tick in ticks)
        steps = {f"{after - before:.6g}" for before, after in itertools.pairwise(ticks)}
        assert len(steps) == 1
        assert steps.pop().strip("0.e+-")[:1] in "125"
    assert svg.around([7.0], 0, 100)(7.0) == 50


def test_the_chosen_export_is_drawn_once_with_all_its_samples() -> None:
    document = example()
    names = [name for name, _, _ in charts.timed(document)]
    assert sorted(names) == ["original fp32", "small.fp32.onnx (= small.onnx)", "small.int8.onnx"]
    drawing = drawn(charts.latency(document)[0].drawing)
    assert len(list(drawing.iter("circle"))) == sum(len(samples) for _, samples, _ in charts.timed(document))
    assert len(charts.timed(example(exports=[]))) == 2
    assert charts.latency(least()) == []
    alone = charts.latency(least(original={"file_bytes": 9, "latency_samples_ms": [0.5]}))
    assert "original: median 0.500 ms." in alone[0].caption


def test_trials_without_a_quality_are_listed_but_not_drawn() -> None:
    trials = [{"recipe": "Prune(0.5)", "file_bytes": 50, "quality": None, "why": "gave NaN"}]
    assert charts.history(least(history=trials)) == []
    assert "gave NaN" in render(least(history=trials))


def test_the_goals_are_lines_where_they_can_be_compared() -> None:
    asked = {"target": {"size": 80, "compression": 20, "max_drop": 0.01}}
    judged = {"original": {"file_bytes": 1000, "quality": 0.9}, "quality_name": "evaluate"}
    assert charts.goals(least(**asked, **judged)) == (50, pytest.approx(0.89))
    assert charts.goals(least(**asked, **judged | {"quality_name": "test"})) == (50, None), "trials were judged on other data"
    assert charts.goals(least(**judged)) == (None, None)
    known = charts.goals(least(**asked, **judged | {"quality_name": "test", "judged_quality": 0.95}))
    assert known == (50, pytest.approx(0.94)), "of the original on the data of the trials"
    trials = [{"recipe": "Prune(0.5)", "file_bytes": 60, "quality": 0.88, "kept": True, "why": "60 B, lost 2 points"}]
    drawing = drawn(charts.history(least(**asked, **judged, history=trials))[0].drawing)
    assert [text.text for text in drawing.iter("text") if (text.text or "").startswith("goal")] == ["goal: 50 B", "goal: 89.00 %"]
    up, across = (each for each in drawing.iter("line") if each.get("class") == "goal-line")
    (dot,) = drawing.iter("circle")
    assert float(up.get("x1", "nan")) < float(dot.get("cx", "nan")), "the dot is right of what was asked: too large"
    assert float(across.get("y1", "nan")) < float(dot.get("cy", "nan")), "and below it: too bad"
    assert told(drawing) == ["Prune(0.5)\n60 B, 88.00 %, after 0.00 s\nlost 2 points"]


def test_what_stands_beside_a_trial_is_not_said_again() -> None:
    trials = [{"recipe": "Prune(0.5)", "file_bytes": 6000, "quality": 0.9, "why": "6.00 kB, lost nothing"}]
    assert "dropped: lost nothing" in render(least(history=trials))


def test_paper_has_no_folds() -> None:
    style = "".join(Page(render(example())).words["style"])
    assert "details::details-content { content-visibility: visible; }" in style.partition("@media print")[2]


def test_what_is_said_of_several_files_is_said_once() -> None:
    notes = ["a.onnx could not be exported: no", "int8 is slower", "b.onnx could not be exported: no", "Alone"]
    assert summary.notes(least(notes=notes)) == ["a.onnx and b.onnx could not be exported: no", "int8 is slower", "Alone"]
    notes = [f"x.onnx: the scales of 'fc{at}' are not in it" for at in range(9)]
    assert summary.notes(least(notes=notes)) == ["x.onnx: the scales of 'fc0', 'fc1', 'fc2' and 6 others are not in it"]
    assert summary.notes(least(notes=["a 'b' and 'c'", "a 'b' and 'd'", ""])) == ["a 'b' and 'c'", "a 'b' and 'd'"]
    assert summary.notes(least(notes=["twice said", "twice said"])) == ["twice said"]
    colons = ["small.fp32.onnx: the first axis is fixed", "small.int8.onnx: the first axis is fixed"]
    assert summary.notes(least(notes=colons)) == ["small.fp32.onnx and small.int8.onnx: the first axis is fixed"]


def test_long_tables_are_folded() -> None:
    for number, folded in ((5, 0), (40, 1)):
        page = Page(render(least(ledger=[{"path": f"fc{at}", "bytes": 9} for at in range(number)])))
        assert page.open == []
        assert len(page.named("details")) == folded


def test_the_columns_of_the_ledger_are_words() -> None:
    page = render(example())
    assert ">weights</th>" in page
    assert ">payload</th>" not in page


def test_a_file_that_did_not_shrink_is_said_aloud() -> None:
    document = Document.from_json({"original": {"file_bytes": 100}, "compressed": {"file_bytes": 120}})
    assert "which is not smaller" in ship.sentences(document)[0]


@pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium")
def test_a_real_browser_draws_every_chart_without_a_complaint(tmp_path: Path) -> None:
    write_html(example(), tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"]
    command = [str(BROWSER), *flags, "--enable-logging=stderr", "--dump-dom", f"file://{tmp_path / 'report.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("<svg") == done.stdout.count("<figure") >= 4
    assert "CONSOLE" not in done.stderr
