"""Two files of version 2 that no change may touch; `python tests/artifact/test_golden.py` writes them."""

from pathlib import Path

import pytest

from enxuto.artifact.container import Reader, read, sizes, write
from enxuto.artifact.index import DTYPES
from enxuto.errors import ArtifactError
from forge import everything, same, taken_apart

GOLDEN = Path(__file__).parent / "golden"
KINDS = {"version2.nxt": False, "version2-plain.nxt": True}


@pytest.mark.parametrize("name", KINDS)
def test_the_golden_file_is_written_and_read_byte_for_byte(name, tmp_path):
    meta, sections = everything()
    ledger = write(tmp_path / name, meta, sections, plain=KINDS[name])
    assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()
    back_meta, back = read(GOLDEN / name)
    assert back_meta == meta
    assert len(back) == len(sections)
    assert all(map(same, back, sections))
    assert sizes(GOLDEN / name) == ledger


@pytest.mark.parametrize("name", KINDS)
def test_the_golden_file_holds_every_method_and_every_dtype(name):
    _, streams = taken_apart(GOLDEN / name)
    assert {stream[0] for stream in streams} == set(range(10))
    assert {section.dtype for section in read(GOLDEN / name)[1]} == set(DTYPES)


def test_a_plain_index_is_of_the_same_tensors_without_shelves():
    (_, streams), (_, others) = (taken_apart(GOLDEN / name) for name in KINDS)
    assert len(streams) < len(others)
    assert all(map(same, *(read(GOLDEN / name)[1] for name in KINDS)))
    with Reader(GOLDEN / "version2.nxt") as shelved, Reader(GOLDEN / "version2-plain.nxt") as bare:
        assert any(entry.shelf for entry in shelved.entries.values())
        assert not any(entry.shelf for entry in bare.entries.values())


def test_a_file_of_the_first_version_is_refused_by_name():
    with pytest.raises(ArtifactError, match=r"version1\.nxt' has format version 1, this enxuto reads 2; it was never released"):
        read(GOLDEN / "version1.nxt")


if __name__ == "__main__":
    for each, bare in KINDS.items():
        write(GOLDEN / each, *everything(), plain=bare)
