import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.coding import classes, decode_integers, encode_integers, simple
from enxuto.coding.bits import write_varint
from enxuto.coding.stream import ADAPTIVE, CLASSES, RUNS, write_parts
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True)


def striped(rows: int, columns: int, symbols: int = 16, seed: int = 0) -> np.ndarray:
    """A matrix whose rows are of three scales, by chance."""
    chance = np.random.default_rng(seed)
    scale = symbols / np.array([40, 12, 4])[chance.integers(0, 3, (rows, 1))]
    codes = np.clip(np.rint(symbols / 2 + scale * chance.normal(size=(rows, columns))), 0, symbols - 1)
    return codes.astype(np.uint8 if symbols <= 256 else np.uint16)


def put_together(found: list[int], parts: list[list[int]], stride: int, axis: int, count: int) -> list[int]:
    """What classes mean, in the slowest way."""
    rows, out, rest = count // stride, [0] * count, [list(part) for part in parts]
    for line, each in enumerate(found):
        for k in range(rows if axis else stride):
            out[k * stride + line if axis else line * stride + k] = rest[each].pop(0)
    assert not any(rest)
    return out


def stream(
    found: list[int], parts: list[list[int]], stride: int, axis: int, symbols: int = 16, number: int | None = None
) -> bytes:
    streams = [simple.encode(np.array(part, np.uint8), symbols) for part in parts]
    number = len(parts) if number is None else number
    head = simple.encode(np.array(found, np.uint8), max(number, 2))
    return write_varint(2 * stride + axis) + bytes([number]) + write_parts([head, *streams])


@law
@given(st.sampled_from([(64, 64), (300, 20), (16, 257), (40, 103)]), st.sampled_from([16, 256, 300]), st.integers(0, 9))
def test_codes_come_back_from_classes_of_rows_and_of_columns(shape, symbols, seed):
    matrix = striped(*shape, symbols, seed)
    for codes in (matrix, np.ascontiguousarray(matrix.T)):
        bodies = list(classes.encode(codes.reshape(-1), codes.shape[1], symbols, math.inf))
        assert bodies
        for body in bodies:
            back = classes.decode(body, codes.size, symbols)
            assert back.dtype == codes.dtype
            assert np.array_equal(back, codes.reshape(-1))


@law
@given(st.data(), st.integers(0, 1), st.integers(1, 6), st.integers(1, 6), st.integers(2, 16))
def test_classes_mean_what_the_format_says(data, axis, rows, stride, number):
    lines, length = (stride, rows) if axis else (rows, stride)
    found = data.draw(st.lists(st.integers(0, number - 1), min_size=lines, max_size=lines))
    chance = np.random.default_rng(data.draw(st.integers(0, 9)))
    parts = [chance.integers(0, 16, found.count(each) * length).tolist() for each in range(number)]
    body = stream(found, parts, stride, axis)
    assert classes.decode(body, rows * stride, 16).tolist() == put_together(found, parts, stride, axis, rows * stride)


def test_rows_of_different_scales_are_smaller_in_classes():
    codes = striped(400, 500)
    alone = len(simple.encode(codes.reshape(-1), 16))
    (body, *_) = classes.encode(codes.reshape(-1), 500, 16, alone)
    assert len(body) < 0.92 * alone
    assert not list(classes.encode(np.random.default_rng(0).permutation(codes.reshape(-1)), 500, 16, alone))


def test_a_large_tensor_comes_back_from_classes():
    codes = striped(800, 1000)
    coded = encode_integers(codes, 16)
    assert coded[0] == CLASSES
    assert np.array_equal(decode_integers(coded, codes.size, 16), codes.reshape(-1))


def test_the_same_codes_give_the_same_classes():
    codes = striped(300, 400)
    assert encode_integers(codes, 16) == encode_integers(codes.copy(), 16)


@law
@given(st.binary(max_size=80), st.integers(1, 400), st.sampled_from([1, 2, 16, 256, 300]))
def test_any_bytes_are_classes_or_are_refused(data, count, symbols):
    try:
        codes = decode_integers(bytes([CLASSES]) + data, count, symbols)
    except ArtifactError:
        return
    assert codes.size == count
    assert codes.max() < symbols


ROWS = [0, 1, 1, 0]
PARTS = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
HEAD = simple.encode(np.array(ROWS, np.uint8), 2)
LIES = {
    "one class": stream(ROWS, [PARTS[0] + PARTS[1]], 3, 0, number=1),
    "no class": stream(ROWS, PARTS, 3, 0, number=0),
    "seventeen classes": stream(ROWS, PARTS + [[]] * 15, 3, 0),
    "more classes than parts": stream(ROWS, PARTS, 3, 0, number=3),
    "a stride of nothing": stream(ROWS, PARTS, 0, 0),
    "a stride that does not divide": stream(ROWS, PARTS, 5, 0),
    "a stride larger than all": stream(ROWS, PARTS, 24, 0),
    "a huge stride": stream(ROWS, PARTS, 1 << 60, 0),
    "the other axis": stream(ROWS, PARTS, 3, 1),
    "a class too many in a line": stream([0, 1, 1, 1], PARTS, 3, 0),
    "codes missing": stream(ROWS, [PARTS[0][:-2], PARTS[1]], 3, 0),
    "codes too many": stream(ROWS, [PARTS[0], [*PARTS[1], 1]], 3, 0),
    "classes within classes": write_varint(6)
    + b"\2"
    + write_parts([HEAD, bytes([CLASSES]) + stream(ROWS, PARTS, 3, 0), b"\0\1"]),
    "runs within classes": write_varint(6) + b"\2" + write_parts([bytes([RUNS]) + bytes(9), b"\0\1", b"\0\1"]),
    "an adaptive part": write_varint(6) + b"\2" + write_parts([HEAD, bytes([ADAPTIVE, 1, 0]) + bytes(4), b"\0\1"]),
    "a class that is empty but has bytes": write_varint(6) + b"\2" + write_parts([b"\0\1", b"\0\1", b"\0\1"]),
    "only a stride": write_varint(6),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_classes_that_lie_are_refused(lie):
    assert decode_integers(bytes([CLASSES]) + stream(ROWS, PARTS, 3, 0), 12, 16).tolist() == [1, 2, 3, *range(7, 13), 4, 5, 6]
    with pytest.raises(ArtifactError):
        decode_integers(bytes([CLASSES]) + LIES[lie], 12, 16)
