"""The page: one file, nothing fetched, everything escaped, whole with whatever parts there are."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from enxuto.errors import OutputError
from enxuto.reports import Document, charts, read_document, ship, write_html
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


def test_our_own_part_names_no_address_at_all() -> None:
    packed = Page(render(example())).words["script"]
    longest = max(packed, key=len)
    assert b"plotly.js" in gzip.decompress(base64.b64decode(longest))[:200]
    assert not re.search(r"https?://", render(example()).replace(longest, ""))


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
    document = least(ledger=[{"path": EVIL, "bytes": 90}, {"path": "b", "bytes": 10}])
    labels = charts.treemaps(document)[0].figure.data[0].labels
    assert any("&lt;script&gt;" in label for label in labels)
    assert not any("<" in label for label in labels)


OPTIONAL = [field.name for field in dataclasses.fields(Document) if field.name not in ("original", "compressed")]


@pytest.mark.parametrize("missing", OPTIONAL)
def test_the_page_stands_without_any_one_part(missing: str) -> None:
    data = json.loads(EXAMPLE.read_text())
    data.pop(missing, None)
    assert Page(render(Document.from_json(data))).open == []


def test_the_least_document_makes_a_small_whole_page_without_charts() -> None:
    page = render(least())
    assert Page(page).open == []
    assert len(page) < 20_000, "plotly only travels when there is something to draw"
    assert "1.00 kB became 100\u00a0B, 10.0\u00a0times smaller." in page.replace("1.00\u00a0kB", "1.00 kB")
    assert "the recipe was given by hand" in page


def test_a_missed_goal_says_why_and_what_would_help() -> None:
    page = render(example(met=False, verdict=["size 30 kB > 20 kB: missed"], advice=["allow a drop of 0.9 points"]))
    assert "✗ Goal missed" in page
    assert "size 30 kB &gt; 20 kB: missed" in page
    assert "allow a drop of 0.9 points" in page


def test_without_a_target_nothing_is_said_to_be_met() -> None:
    assert "Goal met" in render(example(met=True))
    assert "Goal met" not in render(example(met=True, target=None))


def test_headings_descend_one_at_a_time_and_tables_have_captions() -> None:
    page = Page(render(example(met=False, advice=["more bits"])))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.named("table")) == len(page.named("caption")) >= 6
    assert all(tag.get("scope") in ("row", "col") for tag in page.named("th"))
    assert all(tag.get("aria-label") for tag in page.named("div") if tag.get("class") == "chart")
    assert page.named("html")[0]["lang"] == "en"


def test_every_reference_inside_the_page_exists_and_every_id_once() -> None:
    page = Page(render(example()))
    ids = [tag[1]["id"] for tag in page.tags if "id" in tag[1]]
    assert len(ids) == len(set(ids))
    wanted = {tag[1].get(name) for tag in page.tags for name in ("aria-labelledby", "data-copies")} - {None}
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


def test_the_maps_hold_every_byte_of_both_files() -> None:
    document = example()
    before, after = charts.treemaps(document)
    assert before.figure.data[0]["values"][0] == document.original.file_bytes
    assert after.figure.data[0]["values"][0] == document.compressed.file_bytes
    for chart in (before, after):
        data = chart.figure.data[0]
        sums = dict.fromkeys(data.ids, 0)
        for parent, value in zip(data.parents, data["values"], strict=True):
            if parent:
                sums[parent] += value
        sizes = dict(zip(data.ids, data["values"], strict=True))
        assert all(total in (0, sizes[node]) for node, total in sums.items()), "children fill their parent"


def test_a_layer_with_one_kind_of_bytes_and_a_module_with_one_child_are_one_tile() -> None:
    ledger = [{"path": "net.body.fc", "kind": "payload", "bytes": 60}, {"path": "head", "kind": "float", "bytes": 40}]
    labels = charts.treemaps(least(ledger=ledger))[0].figure.data[0].labels
    assert list(labels) == ["whole file", "net.body.fc", "head"]


def test_the_chosen_export_is_drawn_once() -> None:
    names = [trace.name for trace in charts.latency(example())[0].figure.data]
    assert sorted(names) == ["original fp32", "small.fp32.onnx<br>(= small.onnx)", "small.int8.onnx"]
    assert len(charts.latency(example(exports=[]))[0].figure.data) == 2
    assert charts.latency(least()) == []


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
    trials = [{"recipe": "Prune(0.5)", "file_bytes": 50, "quality": 0.88}]
    figure = charts.history(least(**asked, **judged, history=trials))[0].figure
    assert len(figure.layout.shapes) == 2
    assert [note.text for note in figure.layout.annotations] == ["goal: 50 B", "goal: 89.00 %"]


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
    assert done.stdout.count('class="main-svg"') >= 4
    assert "could not draw" not in done.stdout.split("<script")[0]
    assert "CONSOLE" not in done.stderr
