"""The terminal tables say the same as the page, and names cannot steer the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from enxuto.reports import Document, LayerCost, exports_table, layers_table, ledger_table, steps_table, summary_table

EXAMPLE = Path(__file__).with_name("example.json")


def example(**changes: Any) -> Document:
    return Document.from_json({**json.loads(EXAMPLE.read_text()), **changes})


def printed(table: Table, width: int = 200) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(table)
    return file.getvalue()


def row(text: str, start: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


def test_the_summary_shows_every_measure_beside_the_original() -> None:
    text = printed(summary_table(example()))
    for measure in ("file", "test quality", "parameters", "MACs", "latency", "peak memory"):
        assert f"  {measure} " in text
    assert row(text, "file")[1:] == ["311", "kB", "10.7", "kB", "168", "kB"]
    assert "29.1× smaller" in text
    assert "−0.31 points (−0.60 … −0.05)" in text


def test_a_measure_that_was_taken_of_neither_is_left_out() -> None:
    document = Document.from_json({"original": {"file_bytes": 1000}, "compressed": {"file_bytes": 100}})
    assert summary_table(document).row_count == 1


def test_a_quality_that_is_no_fraction_has_no_points() -> None:
    measured = {"file_bytes": 100, "quality": 23.4}
    text = printed(summary_table(Document.from_json({"original": measured, "compressed": {**measured, "quality": 23.1}})))
    assert row(text, "validation")[2:] == ["23.40", "23.10"]
    assert "points" not in text


def test_the_ledger_sums_to_both_files() -> None:
    document = example()
    total = row(printed(ledger_table(document)), "all")
    assert total[1] == f"{document.original.file_bytes:,}"
    assert total[-3] == f"{document.compressed.file_bytes:,}"


def test_a_ledger_that_does_not_sum_is_said_to_be_incomplete() -> None:
    data = json.loads(EXAMPLE.read_text())
    assert "incomplete" not in printed(ledger_table(Document.from_json(data)))
    data["ledger"].pop()
    assert "it is incomplete" in printed(ledger_table(Document.from_json(data)))


def test_a_factorized_layer_is_counted_with_the_layer_it_came_from() -> None:
    ledger = [{"path": "net.fc.down", "bytes": 30}, {"path": "net.fc.up", "bytes": 20}, {"path": "new", "bytes": 50}]
    before = [{"path": "net.fc", "bytes": 900}]
    sizes = {"original": {"file_bytes": 1000}, "compressed": {"file_bytes": 100}}
    text = printed(ledger_table(Document.from_json({**sizes, "ledger": ledger, "before_ledger": before})))
    assert row(text, "net.fc") == ["net.fc", "900", "50", "50", "18.0×", "smaller"]
    assert row(text, "new") == ["new", "–", "50", "50", "–"]
    assert row(text, "(header)")[:2] == ["(header)", "100"]


def test_layers_with_the_same_story_share_a_row_and_none_is_lost_from_the_count() -> None:
    changes = [{"path": f"fc{i}", "what": "4 bits", "why": "small"} for i in range(6)]
    record = {
        "step": "Quantize(bits=4)",
        "changes": changes,
        "skipped": [{"path": "emb", "what": "float", "why": "NaN"}],
    }
    text = printed(steps_table(example(records=[record])))
    assert "fc0, fc1, fc2 and 3 more" in text
    assert "left alone: float" in text


def test_a_step_that_names_no_layer_still_has_a_row() -> None:
    assert "no layer changed by name" in printed(steps_table(example(records=[{"step": "Recover()"}])))


def test_names_are_neither_markup_nor_commands_to_the_terminal() -> None:
    name = "[bold]a[/bold]\x1b[2Jb"
    records = [{"step": name, "changes": [{"path": name, "what": name, "why": name}]}]
    ledger = [{"path": name, "kind": "payload", "bytes": 10}]
    document = example(name=name, records=records, ledger=ledger)
    for table in (summary_table(document), steps_table(document), ledger_table(document)):
        text = printed(table)
        assert "\x1b" not in text
        assert "[bold]a[/bold]" in text


def test_the_exports_show_which_was_chosen_and_what_computes_in_integers() -> None:
    text = printed(exports_table(example()))
    assert "small.fp32.onnx (= small.onnx)" in text
    assert "11 / 1" in text


def test_layers_show_shares_and_leave_out_what_nobody_measured() -> None:
    layers = [
        LayerCost(path="conv", kind="Conv2d", parameters=10, file_bytes=25, macs=300),
        LayerCost(path="fc", kind="Linear", parameters=30, file_bytes=75, macs=100),
    ]
    text = printed(layers_table(layers))
    assert row(text, "conv") == ["conv", "Conv2d", "10", "25", "25.0", "%", "300", "75.0", "%"]
    assert row(text, "all") == ["all", "40", "100", "400"]
    assert "time" not in text.splitlines()[2]


def test_times_that_are_compared_stand_in_one_unit() -> None:
    networks = {name: {"file_bytes": 9, "latency_ms": ms} for name, ms in (("original", 0.169), ("compressed", 0.0397))}
    exports = [{"runtime": "ort", "precision": "fp32", "file_bytes": 9, "latency_ms": 0.0397, "latency_samples_ms": [0.03] * 4}]
    networks["original"]["latency_samples_ms"] = [0.09, 0.09, 0.1, 0.5]
    shipped = [{"name": "small.nxt", "file_bytes": 9}, {"name": "small.onnx", "file_bytes": 9, "latency_ms": 0.0397}]
    document = example(**networks, exports=exports, ship=shipped)
    assert "0.0900 … 0.200 ms" in printed(summary_table(document))
    assert row(printed(summary_table(document)), "latency")[1:5] == ["0.169", "ms", "–", "0.0397"]
    assert "0.0397 ms" in printed(exports_table(document))
    assert "0.0300 … 0.0300 ms" in printed(exports_table(document))
