"""Pictures and outlines of a profile: the peak is never lost, files are whole, the same profile gives the same bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enxuto import memory
from enxuto.errors import OutputError, RangeError, TaskError
from enxuto.memory.drawing import COLOURS
from enxuto.memory.outline import outline
from enxuto.memory.profile import ACTIVATIONS, BACKWARD, CATEGORIES, FORWARD, WEIGHTS, Block, Moment, Profile
from enxuto.reports import memory as charts

SVG = "{http://www.w3.org/2000/svg}"


def profile(sizes: list[int], path: str = "fc") -> Profile:
    """One moment a size; each holds an activation of that many bytes beside one weight."""
    weight = Block(10, 0, len(sizes), WEIGHTS, path)
    blocks = (weight, *(Block(size, at, at + 1, ACTIVATIONS, path) for at, size in enumerate(sizes)))
    half = len(sizes) // 2
    moments = tuple(Moment(FORWARD if at < half else BACKWARD, path, f"aten.op{at}") for at in range(len(sizes)))
    return Profile(blocks, moments, predicted=True)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 70))
def test_an_outline_keeps_the_peak_and_each_moment_is_the_fullest_of_its_stretch(sizes: list[int], most: int) -> None:
    whole = profile(sizes)
    brief = outline(whole, most)
    assert len(brief.at) == min(most, len(sizes))
    assert list(brief.at) == sorted(set(brief.at))
    assert brief.peak_bytes == whole.peak_bytes == sum(line[brief.peak] for line in brief.bytes.values())
    assert brief.at[brief.peak] == whole.peak
    assert brief.moments == len(sizes)
    kept = np.array(brief.at)
    assert (np.sum(list(brief.bytes.values()), axis=0) == whole.total_bytes[kept]).all()
    assert sum(size for *_, size in brief.layers) == whole.peak_bytes


def test_an_outline_of_few_moments_is_the_whole() -> None:
    brief = outline(profile([3, 1, 2]))
    assert brief.at == (0, 1, 2)
    assert brief.operators == ("aten.op0", "aten.op1", "aten.op2")
    with pytest.raises(RangeError, match="most=0"):
        outline(profile([1]), 0)


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_is_whole_and_the_same_each_time(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        memory.draw(profile([10, 50, 20, 5]), tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{kind}", f"b.{kind}"]
    start = (tmp_path / f"a.{kind}").read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if kind == "png" else start.startswith(b"<?xml")


def drawn_words(path: Path) -> str:
    """What a picture says: matplotlib writes each text beside its outlines as a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return "\n".join(node.text or "" for node in tree.iter() if node.tag is ElementTree.Comment)


def test_the_picture_names_the_peak_and_the_layers(tmp_path: Path) -> None:
    memory.draw({"original": profile([10, 50], "blocks.0.fc1"), "small": profile([5, 20], "$x_1$")}, tmp_path / "two.svg")
    words = drawn_words(tmp_path / "two.svg")
    for expected in (
        "original: 60 B at the fullest moment",
        "small: 30 B",
        "blocks.0.fc1",
        "$x_1$",
        "aten.op1",
        *CATEGORIES[::3],
    ):
        assert expected in words


def test_a_picture_of_another_kind_or_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"memory\.svg"):
        memory.draw(profile([1]), tmp_path / "memory.pdf")
    with pytest.raises(OutputError, match="could not be written"):
        memory.draw(profile([1]), tmp_path / "nowhere" / "memory.svg")
    for nothing in ({}, {"a": 3}, None):
        with pytest.raises(TaskError, match="holds no profile"):
            memory.draw(nothing, tmp_path / "memory.svg")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_profile_without_any_bytes_can_be_drawn(tmp_path: Path) -> None:
    memory.draw(replace(profile([0, 0]), blocks=()), tmp_path / "nothing.svg")
    assert (tmp_path / "nothing.svg").stat().st_size > 1000


def test_pictures_and_page_have_the_same_colours() -> None:
    assert COLOURS == charts.COLOURS
    assert set(COLOURS) == set(CATEGORIES)


def test_matplotlib_is_imported_when_it_is_used() -> None:
    code = "import sys, enxuto; enxuto.memory.predict, enxuto.memory.watch; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
