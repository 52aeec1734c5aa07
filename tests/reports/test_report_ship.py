"""One sentence, one file: whatever is said of a file to ship was measured of this very file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report_tables import printed

from enxuto.evaluation.measurement import Evaluation, Exported, Measurement
from enxuto.reports import Document, summary_table
from enxuto.reports.page import render
from enxuto.reports.ship import file_rows, heads, sentences, use

CLOCK = {"latency_samples_ms": ()}


def measured(**figures: Any) -> Measurement:
    shared = {"parameters": 900, "macs": 7000, "precision": "fp32", "latency_ms": 0.8, "peak_memory_bytes": 6_660_000}
    return Measurement(**(shared | CLOCK | figures))


def exported(**figures: Any) -> Exported:
    shared = {"runtime": "onnxruntime", "quality_change_interval": None, "quality_change": 0.0}
    return Exported(**(shared | CLOCK | figures))


def evaluation(precision: str = "int8") -> Evaluation:
    """Every figure of every file differs from every other, so that each says whose it is."""
    fp32 = exported(precision="fp32", file_bytes=447_000, quality=0.8812, latency_ms=0.64, peak_memory_bytes=5_550_000)
    int8 = exported(precision="int8", file_bytes=131_000, quality=0.8734, latency_ms=0.32, peak_memory_bytes=3_330_000)
    chosen = {"fp32": fp32, "int8": int8}.get(precision)
    clock = (chosen.latency_ms, chosen.peak_memory_bytes) if chosen else (None, None)
    return Evaluation(
        original=measured(file_bytes=1_720_000, quality=0.8951),
        compressed=measured(
            file_bytes=97_400, quality=0.8900, latency_ms=clock[0], peak_memory_bytes=clock[1], precision=precision
        ),
        quality_name="test",
        quality_change=-0.0051,
        quality_change_interval=None,
        samples=1000,
        exports=(fp32, int8),
    )


def document(found: Evaluation) -> Document:
    from dataclasses import asdict

    return Document.from_json(asdict(found) | {"ship": [asdict(file) for file in found.ship]})


OWN = {
    "small.nxt": {"97.4 kB", "89.00 %"},
    "small.onnx (int8)": {"131 kB", "87.34 %", "2.50 times faster", "0.320 ms", "3.33 MB"},
    "small.onnx (fp32)": {"447 kB", "88.12 %", "1.25 times faster", "0.640 ms", "5.55 MB"},
}


def owners(text: str) -> set[str]:
    """The files whose figures stand in a text."""
    return {name for name, figures in OWN.items() if any(figure in text for figure in figures)}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_each_sentence_names_one_file_and_holds_figures_of_no_other(precision: str) -> None:
    said = sentences(document(evaluation(precision)))
    assert [sentence.partition(":")[0] for sentence in said] == ["small.nxt", f"small.onnx ({precision})"]
    assert [owners(sentence) for sentence in said] == [{"small.nxt"}, {f"small.onnx ({precision})"}]
    assert "faster" not in said[0], "no runtime opens small.nxt, so no clock was asked"
    assert f"{1_720_000 / {'fp32': 447_000, 'int8': 131_000}[precision]:.2f}"[:3] in said[1], "its own bytes give its ratio"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_each_column_of_the_table_is_one_file(precision: str) -> None:
    found = document(evaluation(precision))
    assert heads(found) == ["original", "small.nxt", f"small.onnx ({precision})"]
    for column, head in enumerate(heads(found)[1:], 1):
        cells = " | ".join(row.cells[column].text for row in file_rows(found))
        assert owners(cells) == {head}
    assert all(head in printed(summary_table(found)) for head in heads(found))


def test_no_paragraph_of_the_page_mixes_files() -> None:
    page = render(document(evaluation()))
    top = page.partition('id="summary"')[0].replace("\u00a0", " ")
    paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", top, re.DOTALL)
    assert {frozenset(owners(text)) for text in paragraphs} == {frozenset(), *({frozenset({n}) for n in OWN if "fp32" not in n})}


def test_the_top_says_which_file_is_for_what() -> None:
    found = document(evaluation())
    small, fast = (use(found, file) for file in found.files)
    assert small.startswith("the smallest; ")
    assert "enxuto.load" in small
    assert fast.startswith("the fastest; ")
    assert "ONNX Runtime" in fast
    assert "Which file to ship" in render(found)


def test_an_export_that_is_no_faster_than_the_original_is_not_called_the_fastest() -> None:
    plain = json.loads(json.dumps(document(evaluation()), default=vars))
    plain["original"]["latency_ms"] = 0.1
    assert "fastest" not in use(Document.from_json(plain), Document.from_json(plain).files[1])


def test_a_network_without_an_export_ships_one_file() -> None:
    found = document(evaluation("none"))
    assert heads(found) == ["original", "small.nxt"]
    assert len(sentences(found)) == 1


def test_the_example_has_both_files() -> None:
    example = Document.from_json(json.loads(Path(__file__).with_name("example.json").read_text()))
    assert [file.name for file in example.files] == ["small.nxt", "small.onnx"]
