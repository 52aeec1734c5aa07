"""Reading a result back: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.errors import ArtifactError
from enxuto.reports import Document, read_document, summary_table
from enxuto.reports.page import render

EXAMPLE = Path(__file__).with_name("example.json")
LEAST: dict[str, Any] = {"original": {"file_bytes": 1000}, "compressed": {"file_bytes": 100}}


def example() -> dict[str, Any]:
    return json.loads(EXAMPLE.read_text())


def test_the_example_reads_with_every_field() -> None:
    document = read_document(EXAMPLE)
    data = example()
    assert document.compressed.file_bytes == data["compressed"]["file_bytes"]
    assert document.quality_change_interval == (-0.006, -0.0005)
    assert [record.step for record in document.records] == [record["step"] for record in data["records"]]
    assert len(document.ledger) == len(data["ledger"])
    assert document.target is not None
    assert document.target.max_drop == 0.005
    assert document.compression == pytest.approx(data["compression"])
    assert [dict(step) for step in document.recipe] == data["recipe"]


def test_a_folder_stands_for_the_result_in_it(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(LEAST))
    assert read_document(tmp_path).original.file_bytes == 1000


def test_unknown_fields_are_passed_over() -> None:
    assert Document.from_json({**LEAST, "later": [1]}) == Document.from_json(LEAST)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"original": {}}, "'original.file_bytes' is missing"),
        ({"original": {"file_bytes": "many"}}, "'original.file_bytes' is 'many', not a whole number"),
        ({"original": {"file_bytes": True}}, "'original.file_bytes' is True, not a whole number"),
        ({"original": {"file_bytes": 1.5}}, "not a whole number"),
        ({"original": {"file_bytes": 0}}, "'original.file_bytes' is 0, which no file has"),
        ({"quality_change_interval": [1]}, "'quality_change_interval' is \\[1\\], not a list of the expected length"),
        ({"ledger": [{"path": "a", "bytes": None}]}, "'ledger\\[0\\].bytes' is None"),
        ({"records": 3}, "'records' is 3, not a list"),
        ({"environment": []}, "'environment' is \\[\\], not an object"),
        ({"met": "yes"}, "'met' is 'yes', not true or false"),
        ({"original": {"file_bytes": 9, "latency_samples_ms": [math.nan]}}, "latency_samples_ms\\[0\\]' is nan"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Document.from_json({**LEAST, **change})


def test_a_number_that_is_not_finite_was_not_measured() -> None:
    measured = {"file_bytes": 9, "quality": math.nan, "latency_ms": math.inf}
    document = Document.from_json({**LEAST, "compressed": measured})
    assert document.compressed.quality is None
    assert document.compressed.latency_ms is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"not JSON|not an object"):
        read_document(path)


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere.*cannot be read"):
        read_document(tmp_path / "nowhere")


def places(data: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The address of every value in parsed JSON."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [here, *(place for key, value in inner for place in places(value, (*here, key)))]


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(place=st.sampled_from([place for place in places(example()) if place]), odd=ODD)
def test_a_damaged_result_is_refused_or_can_be_shown(place: tuple[Any, ...], odd: Any) -> None:
    data = copy.deepcopy(example())
    spot = data
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = odd
    try:
        document = Document.from_json(data)
    except ArtifactError:
        return
    assert summary_table(document).row_count >= 1
    assert "</html>" in render(document)
