"""Two files of version 2 that no change may touch; `python tests/artifact/test_golden.py` writes them."""

from pathlib import Path

import pytest

from enxuto.artifact.container import read, sizes, write
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


def test_both_golden_files_differ_in_their_index_alone():
    (text, streams), (other, others) = (taken_apart(GOLDEN / name) for name in KINDS)
    assert (text, streams) == (other, others)


def test_a_file_of_the_first_version_is_refused_by_name():
    with pytest.raises(ArtifactError, match=r"version1\.nxt' has format version 1, this enxuto reads 2; it was never released"):
        read(GOLDEN / "version1.nxt")


if __name__ == "__main__":
    for each, bare in KINDS.items():
        write(GOLDEN / each, *everything(), plain=bare)
