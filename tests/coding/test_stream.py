import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.coding.bits import write_varint
from enxuto.coding.stream import check_filled, read_constant, read_parts, write_constant, write_parts
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)


@law
@given(st.integers(0, 2**64 - 1))
def test_a_constant_comes_back_in_as_few_bytes_as_it_needs(value):
    data = write_constant(value)
    assert read_constant(data[1:], 1 << 64) == value
    assert len(data) - 1 == (value.bit_length() + 7) // 8
    with pytest.raises(ArtifactError):
        read_constant(data[1:], value)


@law
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.binary(max_size=5))
def test_parts_come_back(parts, before):
    assert read_parts(write_parts(parts, before), len(before), len(parts)) == parts


@pytest.mark.parametrize("data", [b"", b"\x05abc", write_varint(1 << 62), b"\x80\x00abc", b"\xff" * 10])
def test_parts_that_do_not_fit_are_refused(data):
    with pytest.raises(ArtifactError):
        read_parts(data, 0, 2)


def test_something_is_read_exactly_where_there_is_something():
    assert check_filled(b"x", 1)
    assert not check_filled(b"", 0)
    for data, count in ((b"", 1), (b"x", 0)):
        with pytest.raises(ArtifactError, match="are no stream of"):
            check_filled(data, count)


@pytest.mark.parametrize("module", ["enxuto.coding", "enxuto.artifact.container"])
def test_importing_the_coders_and_the_file_loads_neither_torch_nor_numba(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
