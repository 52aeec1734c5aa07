import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.coding.bits import packed_bytes, read_varint, write_varint
from enxuto.coding.simple import read_only
from enxuto.coding.simple_kernels import pack_bits, unpack_bits
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)


def some_codes(count: int, bits: int, seed: int = 0) -> np.ndarray:
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << bits, count).astype(dtype)


def pack(codes: np.ndarray, bits: int) -> bytes:
    out = np.zeros(packed_bytes(codes.size, bits), np.uint8)
    pack_bits(codes, bits, out, 0)
    return out.tobytes()


def unpack(data: bytes, count: int, bits: int) -> np.ndarray | None:
    out = np.empty(count, np.uint8 if bits <= 8 else np.uint16)
    return out if unpack_bits(read_only(data), 0, len(data), bits, out) else None


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
def test_unpacking_gives_back_what_was_packed(bits, count):
    codes = some_codes(count, bits)
    data = pack(codes, bits)
    assert len(data) == packed_bytes(count, bits)
    assert np.array_equal(unpack(data, count, bits), codes)


@law
@given(st.integers(1, 16), st.integers(0, 60), st.integers(0, 99))
def test_packing_agrees_with_a_long_binary_number(bits, count, seed):
    codes = some_codes(count, bits, seed)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert pack(codes, bits) == number.to_bytes((count * bits + 7) // 8, "little")


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x02\x03", b"\x01\xff"])
def test_packed_bytes_of_another_length_or_with_stray_bits_are_refused(data):
    assert unpack(data, 3, 3) is None


@law
@given(st.integers(0, 2**63 - 1))
def test_a_varint_comes_back(value):
    data = b"x" + write_varint(value) + b"rest"
    assert read_varint(data, 1) == (value, len(data) - 4)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 12, b"\x80\x00"])
def test_a_varint_that_ends_early_or_is_too_long_is_refused(data):
    with pytest.raises(ArtifactError):
        read_varint(data, 0)
